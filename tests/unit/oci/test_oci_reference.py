"""Names, tags and whole references."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.oci.digest import Digest, DigestInvalid
from entrepot.oci.errors import GrammarError
from entrepot.oci.reference import (
    NameInvalid,
    Reference,
    TagInvalid,
    parse_host,
    parse_name,
    parse_reference,
    parse_tag,
)

DIGEST = Digest.of(b"")
NAMES = st.from_regex(
    r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*", fullmatch=True
).filter(lambda name: len(name) <= 255)
TAGS = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", fullmatch=True)
HOSTS = st.sampled_from(["localhost", "localhost:5000", "docker.io", "r.example.org:5000", "[::1]:5000", "10.0.0.1:80"])


@given(NAMES)
def test_every_name_of_the_grammar_is_accepted(name: str) -> None:
    assert parse_name(name) == name


@given(TAGS)
def test_every_tag_of_the_grammar_is_accepted(tag: str) -> None:
    assert parse_tag(tag) == tag
    assert parse_reference(tag) == tag


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "A",
        "a..b",
        "a___b",
        "a._b",
        "-a",
        "a-",
        "a/../b",
        "a%2fb",
        "a\n",
        "ä",
        "a:b",
        "a" * 256,
    ],
)
def test_what_is_not_a_name_is_refused(name: str) -> None:
    with pytest.raises(NameInvalid):
        parse_name(name)


@pytest.mark.parametrize("name", ["a", "a/b/c", "a__b", "a---b", "a.b_c-d/e", "0", "a" * 255])
def test_names_at_the_edge_are_accepted(name: str) -> None:
    assert parse_name(name) == name


@pytest.mark.parametrize("tag", ["", ".a", "-a", "a b", "a\n", "a/b", "ä", "a" * 129, "a:b", "٣"])
def test_what_is_not_a_tag_is_refused(tag: str) -> None:
    with pytest.raises(TagInvalid):
        parse_tag(tag)


def test_a_reference_with_a_colon_is_a_digest() -> None:
    assert parse_reference(str(DIGEST)) == DIGEST
    with pytest.raises(DigestInvalid):
        parse_reference("sha256:baddigeststring")


@given(st.none() | HOSTS, NAMES, st.none() | TAGS, st.none() | st.just(DIGEST))
def test_a_whole_reference_reads_back_as_what_was_written(
    host: str | None, name: str, tag: str | None, digest: Digest | None
) -> None:
    first, slash, _ = name.partition("/")
    if host is None and slash and ("." in first or first == "localhost"):
        return  # then the first part of the name is a host
    text = (f"{host}/" if host else "") + name + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    reference = Reference.parse(text)
    assert (reference.host, reference.name, reference.tag, reference.digest) == (host, name, tag, digest)
    assert str(reference) == text


@given(st.text())
def test_any_text_is_a_reference_or_is_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except GrammarError:
        return
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    "text", ["", ":tag", "@", "a@", "a:", "host:5000/", "a:b:c", "a@b@c", "LOCAL/", "-x.y/a", "x" * 5000]
)
def test_what_is_not_a_reference_is_refused(text: str) -> None:
    with pytest.raises(GrammarError):
        Reference.parse(text)


def test_a_host_is_compared_in_lower_case() -> None:
    assert parse_host("Registry.Example.ORG:5000") == "registry.example.org:5000"
    assert Reference.parse("Example.org/a").host == "example.org"


def test_hostile_input_takes_no_time() -> None:
    begin = time.perf_counter()
    for hostile in ("a-" * 127 + "!", "a" * 255 + "!", "a/" * 127, "a." * 130 + "/b", "a" * 260 + "./b"):
        with pytest.raises(GrammarError):
            parse_name(hostile[:255] + "!")
        with pytest.raises(GrammarError):
            Reference.parse(hostile + "!")
    assert time.perf_counter() - begin < 0.5
