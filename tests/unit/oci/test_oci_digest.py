"""Digests: only valid ones exist."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.oci.digest import ALGORITHMS, MAX_LENGTH, Digest, DigestInvalid, Hasher
from entrepot.oci.errors import ErrorCode

EMPTY = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@given(st.binary(max_size=200), st.sampled_from(sorted(ALGORITHMS)))
def test_the_digest_of_any_content_reads_back_as_itself(content: bytes, algorithm: str) -> None:
    digest = Digest.of(content, algorithm)
    assert digest.hex == hashlib.new(algorithm, content).hexdigest()
    assert Digest.parse(str(digest)) == digest
    assert len(str(digest)) <= MAX_LENGTH


@given(st.text() | st.from_regex(r"sha(256|512):[a-fA-F0-9]{60,130}\n?"))
def test_any_text_is_a_digest_that_writes_itself_back_or_is_refused(text: str) -> None:
    try:
        digest = Digest.parse(text)
    except DigestInvalid as error:
        refusal = error
    else:
        assert str(digest) == text
        return
    assert refusal.code == ErrorCode.DIGEST_INVALID
    assert len(str(refusal)) < 1000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "sha256:baddigeststring",
        "sha256:../../../../etc/passwd",
        EMPTY.upper(),
        EMPTY[:-1],
        EMPTY + "0",
        EMPTY + "\n",
        " " + EMPTY,
        EMPTY.replace("e3", "E3"),
        "sha512:" + EMPTY.removeprefix("sha256:"),
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        "sha256+b64:LCa0a2j_xo_5m0U8HTBBNBNCLXBkg7-g-YpeiGJm564",
        "sha256:" + "٣" * 64,
        "sha256:" + "a" * 10_000,
    ],
)
def test_what_is_not_a_registered_digest_is_refused(text: str) -> None:
    with pytest.raises(DigestInvalid):
        Digest.parse(text)


def test_the_constructor_itself_refuses_so_that_no_path_can_be_smuggled_in() -> None:
    with pytest.raises(DigestInvalid):
        Digest("sha256", "../x")
    with pytest.raises(DigestInvalid):
        Digest("md5", "0" * 32)


@given(st.lists(st.binary(max_size=50)), st.sampled_from(sorted(ALGORITHMS)))
def test_a_hasher_counts_and_hashes_the_same_however_the_bytes_arrive(chunks: list[bytes], algorithm: str) -> None:
    hasher = Hasher(algorithm)
    for chunk in chunks:
        hasher.update(memoryview(chunk))
    assert hasher.size == sum(map(len, chunks))
    assert hasher.digest() == Digest.of(b"".join(chunks), algorithm)


def test_a_hasher_of_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(DigestInvalid):
        Hasher("md5")
    with pytest.raises(DigestInvalid):
        Digest.of(b"", "shake_128")
    assert str(Digest.of(b"")) == EMPTY
