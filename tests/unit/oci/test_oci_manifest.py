"""Manifests: any bytes are one, or are refused with a reason."""

from __future__ import annotations

import base64
import contextlib
import json
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.oci import manifest as manifests
from entrepot.oci import media_types
from entrepot.oci.digest import Digest
from entrepot.oci.errors import ErrorCode
from entrepot.oci.manifest import (
    Kind,
    Manifest,
    ManifestInvalid,
    ManifestUnsupported,
    Platform,
    config_platform,
    parse,
    with_labels,
)


def descriptor(media_type: str, content: bytes = b"", **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content), **more}


def image(config: str = media_types.OCI_CONFIG, layer: str = media_types.OCI_LAYER_GZIP, **more: Any) -> dict[str, Any]:
    document = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "config": descriptor(config, b"{}"),
        "layers": [descriptor(layer, b"layer")],
    }
    return {key: value for key, value in (document | more).items() if value is not ...}


def index(**more: Any) -> dict[str, Any]:
    child = descriptor(
        media_types.OCI_MANIFEST, b"child", platform={"os": "linux", "architecture": "arm64", "variant": "v8"}
    )
    document = {"schemaVersion": 2, "mediaType": media_types.OCI_INDEX, "manifests": [child]}
    return {key: value for key, value in (document | more).items() if value is not ...}


def read(document: object, content_type: str | None = None) -> Manifest:
    return parse(json.dumps(document).encode(), content_type=content_type)


def test_an_image_manifest_names_its_parts() -> None:
    layer = descriptor(media_types.DOCKER_FOREIGN_LAYER_GZIP, b"x", urls=["https://x/y"], annotations={"a": "b"})
    body = json.dumps(image(layers=[layer, layer], annotations={"k": "v"}), indent=3).encode()
    found = parse(body, content_type=media_types.OCI_MANIFEST)
    assert (found.body, found.digest, found.kind) == (body, Digest.of(body), Kind.IMAGE)
    assert found.config is not None
    assert (found.config.size, found.config.digest) == (2, Digest.of(b"{}"))
    assert len(found.layers) == 2
    assert (found.layers[0].urls, found.layers[0].annotations) == (("https://x/y",), {"a": "b"})
    assert found.blobs == (found.config, found.layers[0])
    assert found.annotations == {"k": "v"}
    assert not found.is_index
    assert parse(body, algorithm="sha512").digest == Digest.of(body, "sha512")
    assert isinstance(hash(found), int)


def test_an_index_names_its_children_with_their_platforms() -> None:
    platform = {
        "os": "windows",
        "architecture": "amd64",
        "os.version": "10.0",
        "os.features": ["win32k"],
        "features": ["sse4"],
    }
    found = read(
        index(manifests=[descriptor(media_types.OCI_MANIFEST, platform=platform), descriptor(media_types.OCI_INDEX)])
    )
    assert found.is_index
    assert found.kind is Kind.INDEX
    assert found.children[0].platform == Platform("windows", "amd64", None, "10.0", ("win32k",), ("sse4",))
    assert found.children[1].platform is None
    assert str(read(index()).children[0].platform) == "linux/arm64/v8"


def test_a_subject_and_an_artifact_type_belong_to_oci_manifests() -> None:
    subject = descriptor(media_types.OCI_MANIFEST, b"subject")
    found = read(image(subject=subject, artifactType="application/x"))
    assert found.subject is not None
    assert found.subject.digest == Digest.of(b"subject")
    assert (found.artifact_type, found.referrer_type, found.kind) == ("application/x", "application/x", Kind.ARTIFACT)
    assert read(image()).referrer_type == media_types.OCI_CONFIG
    assert read(index()).referrer_type is None
    docker = read(image(media_types.DOCKER_CONFIG, subject=subject, mediaType=media_types.DOCKER_MANIFEST))
    assert docker.subject is None


@pytest.mark.parametrize(
    ("document", "header", "expected"),
    [
        (image(mediaType=...), media_types.OCI_MANIFEST + "; charset=utf-8", media_types.OCI_MANIFEST),
        (image(mediaType=...), None, media_types.OCI_MANIFEST),
        (image(mediaType=...), "application/json", media_types.OCI_MANIFEST),
        (image(media_types.DOCKER_CONFIG, mediaType=...), "text/plain", media_types.DOCKER_MANIFEST),
        (image(mediaType=media_types.DOCKER_MANIFEST), "application/octet-stream", media_types.DOCKER_MANIFEST),
        (image(), "garbage", media_types.OCI_MANIFEST),
        (index(mediaType=...), None, media_types.OCI_INDEX),
        (index(mediaType=..., manifests=[]), None, media_types.OCI_INDEX),
        (
            index(mediaType=..., manifests=[descriptor(media_types.DOCKER_MANIFEST)]),
            None,
            media_types.DOCKER_MANIFEST_LIST,
        ),
        (index(mediaType=..., manifests=None), media_types.OCI_INDEX, media_types.OCI_INDEX),
    ],
)
def test_the_media_type_is_the_bodys_then_the_headers_then_a_guess(
    document: dict[str, Any], header: str | None, expected: str
) -> None:
    assert read(document, header).media_type == expected


@pytest.mark.parametrize(
    ("document", "header", "words"),
    [
        (image(manifests=[]), None, "never both"),
        (index(layers=[]), None, "never both"),
        (index(config=descriptor("a/b")), None, "never both"),
        (image(mediaType=..., manifests=[]), None, "never both"),
        (image(), media_types.OCI_INDEX, "Content-Type"),
        (image(), media_types.DOCKER_MANIFEST, "Content-Type"),
        (image(), "application/x-unknown", "Content-Type"),
        (image(mediaType="application/x-unknown"), None, "not one of a manifest"),
        (image(mediaType=...), media_types.OCI_INDEX, "list of manifests"),
        (index(mediaType=...), media_types.OCI_MANIFEST, "never both"),
        (index(manifests=...), None, "list of manifests"),
        ({"schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "layers": []}, None, "has a config"),
        ({"schemaVersion": 2}, None, "neither"),
        (image(schemaVersion=3), None, "schemaVersion"),
        (image(schemaVersion=...), None, "schemaVersion"),
        (image(schemaVersion="2"), None, "schemaVersion"),
        (image(layers=[descriptor("")]), None, "mediaType"),
        (image(layers=[descriptor("a/b") | {"size": -1}]), None, "size"),
        (image(layers=[descriptor("a/b") | {"size": 2**63}]), None, "size"),
        (image(layers=[descriptor("a/b") | {"size": 1.5}]), None, "size"),
        (image(layers=[descriptor("a/b") | {"digest": "sha256:../../x"}]), None, "hexadecimal"),
        (image(layers=[descriptor("a/b") | {"digest": "md5:" + "0" * 32}]), None, "algorithm"),
        (image(layers=[{"mediaType": "a/b"}]), None, "digest"),
        (image(annotations={"a": 1}), None, "annotations"),
        (image(annotations={"a": "\0"}), None, "NUL"),
        (image(layers=[descriptor("a/b", urls=["\0"])]), None, "NUL"),
        ([], None, "object"),
        (None, None, "object"),
    ],
)
def test_what_is_ambiguous_or_wrong_is_refused_with_a_reason(document: object, header: str | None, words: str) -> None:
    with pytest.raises(ManifestInvalid, match=words) as caught:
        read(document, header)
    assert caught.value.code == ErrorCode.MANIFEST_INVALID


@pytest.mark.parametrize(
    ("document", "header"),
    [
        ({"schemaVersion": 1, "name": "a", "fsLayers": [], "history": [], "signatures": []}, None),
        ({"schemaVersion": 1, "config": "nonsense"}, media_types.DOCKER_MANIFEST_V1_SIGNED),
        ({"schemaVersion": 2, "mediaType": media_types.DOCKER_MANIFEST_V1}, None),
        ({}, media_types.DOCKER_MANIFEST_V1),
    ],
)
def test_schema_1_is_refused_saying_what_to_do(document: object, header: str | None) -> None:
    with pytest.raises(ManifestUnsupported, match="push the image again"):
        read(document, header)


@pytest.mark.parametrize(
    "document",
    [
        image(layers=None),
        image(layers=...),
        image(annotations=None, subject=None, artifactType=None, manifests=None),
        image(annotations={"a": None}, custom={"x": [1, 2.5, None]}),
        index(manifests=[]),
        index(layers=None, config=None),
        index(manifests=[descriptor(media_types.OCI_MANIFEST, platform={"os": None})]),
        image(annotations={"text": "\\u0000 is no NUL"}),
    ],
)
def test_harmless_sloppiness_is_accepted(document: dict[str, Any]) -> None:
    assert read(document).body


def test_embedded_data_is_given_only_if_it_is_the_content() -> None:
    def embed(data: bytes) -> bytes | None:
        encoded = base64.b64encode(data).decode()
        return read(image(layers=[descriptor("a/b", b"real", data=encoded)])).layers[0].data

    assert embed(b"real") == b"real"
    assert embed(b"fake") is None
    assert embed(b"longer") is None


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        (image(), Kind.IMAGE),
        (image(media_types.DOCKER_CONFIG), Kind.IMAGE),
        (image(media_types.OCTET_STREAM, mediaType=media_types.DOCKER_MANIFEST), Kind.IMAGE),
        (image(media_types.DOCKER_PLUGIN_CONFIG, mediaType=media_types.DOCKER_MANIFEST), Kind.UNKNOWN),
        (image(media_types.OCI_EMPTY), Kind.ARTIFACT),
        (image("application/x-other"), Kind.ARTIFACT),
        (image(media_types.HELM_CONFIG), Kind.HELM),
        (image(annotations={"containers.bootc": "1"}), Kind.BOOTABLE),
        (image(annotations={"containers.bootc": "0"}), Kind.IMAGE),
        (image(layer=media_types.COSIGN_SIMPLE_SIGNING), Kind.COSIGN_SIGNATURE),
        (image(layer=media_types.DSSE_ENVELOPE), Kind.COSIGN_ATTESTATION),
        (image(layer="text/spdx+json"), Kind.COSIGN_SBOM),
        (image(layer="application/vnd.dev.sigstore.bundle.v0.3+json"), Kind.COSIGN_ATTESTATION),
        (
            image(
                layer="application/vnd.dev.sigstore.bundle.v0.3+json",
                annotations={"dev.sigstore.bundle.content": "message-signature"},
            ),
            Kind.COSIGN_SIGNATURE,
        ),
        (index(annotations={"containers.bootc": "1"}), Kind.INDEX),
    ],
)
def test_the_kind_is_what_a_user_would_call_it(document: dict[str, Any], kind: Kind) -> None:
    assert read(document).kind is kind


def test_labels_of_the_config_can_tell_more() -> None:
    found = read(image())
    assert with_labels(found, {"a": "b"}) is found
    assert with_labels(found, {"containers.bootc": "1"}).kind is Kind.BOOTABLE
    flatpak = with_labels(found, {"org.flatpak.ref": "app/x"})
    assert (flatpak.kind, flatpak.digest, flatpak.layers) == (Kind.FLATPAK, found.digest, found.layers)


def test_the_largest_manifest_passes_and_one_byte_more_does_not() -> None:
    small = json.dumps(image(annotations={f"k{i}": "x" * 10_000 for i in range(390)})).encode()
    body = small + b" " * (manifests.MAX_MANIFEST_SIZE - len(small))
    assert len(parse(body).annotations) == 390
    with pytest.raises(ManifestInvalid, match="at most"):
        parse(body + b" ")
    with pytest.raises(ManifestInvalid, match="at most 10 bytes"):
        parse(body, limit=10)


@pytest.mark.parametrize("depth", [100, sys.getrecursionlimit() * 3, 1_000_000])
@pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_is_refused(depth: int, left: str, right: str) -> None:
    if depth * len(left + right) > 3_000_000:
        depth //= 4
    body = json.dumps(image(x="HERE")).replace('"HERE"', left * depth + "1" + right * depth).encode()
    with pytest.raises(ManifestInvalid, match="deeper than 64"):
        parse(body)
    assert config_platform(body) == (None, {})


def test_brackets_in_strings_and_side_by_side_are_not_depth() -> None:
    tricky = {
        "\\": '\\"[[[',
        "b": ['"', "\\\\", "{" * 500, "\\" * 501 + '"'],
        "c": [[] for _ in range(500)],
        "d": [{}] * 500,
    }
    assert read(image(x=tricky)).kind is Kind.IMAGE
    nested: list[Any] = []
    for _ in range(62):
        nested = [nested, "]"]
    assert read(image(x=nested)).kind is Kind.IMAGE
    with pytest.raises(ManifestInvalid, match="deeper"):
        read(image(x=[nested, "]" * 100]))


@pytest.mark.parametrize(
    "filler", [b'"",[],', b"[" * 62 + b"]" * 62 + b",", b'"\\\\",', b"1e999,", b"9" * 4000 + b","], ids=range(5)
)
def test_four_hostile_megabytes_take_bounded_time(filler: bytes) -> None:
    head = json.dumps(index())[:-1].encode() + b',"x":['
    body = head + filler * ((manifests.MAX_MANIFEST_SIZE - len(head) - 10) // len(filler)) + b"0]}"
    begin = time.perf_counter()
    with contextlib.suppress(ManifestInvalid):
        parse(body)
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"\xef\xbb\xbf{}", b'{"a":NaN}', b'{"schemaVersion":1e999}', b'{"schemaVersion":' + b"9" * 10_000 + b"}",
     b'{"schemaVersion":2,"artifactType":"\\ud800"}', b'{"schemaVersion":2,"artifactType":"\xed\xa0\x80"}', b"{}{}", b'{"a":1,}',
     b'{"schemaVersion":2,"manifests":[],"x":-Infinity}'],
)  # fmt: skip
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        parse(body)
    assert config_platform(body) == (None, {})


def test_of_duplicate_keys_the_last_counts_in_every_reading() -> None:
    body = json.dumps(image())[:-1] + ',"mediaType":"' + media_types.OCI_INDEX + '"}'
    with pytest.raises(ManifestInvalid):
        parse(body.encode())
    body = '{"schemaVersion":1,' + json.dumps(image())[1:]
    assert parse(body.encode()).kind is Kind.IMAGE


def check(body: bytes, content_type: str | None) -> None:
    """The property: a sound Manifest, or ManifestInvalid with a short message; never anything else."""
    try:
        found = parse(body, content_type=content_type)
    except ManifestInvalid as error:
        message = str(error)
    else:
        check_sound(found, body)
        return
    assert len(message) < 1000


def check_sound(found: Manifest, body: bytes) -> None:
    assert found.body == body
    assert found.media_type in media_types.MANIFEST_TYPES
    assert not (found.children and (found.layers or found.config))
    assert found.is_index or found.config is not None
    assert found == parse(body, content_type=found.media_type)
    for part in (*found.blobs, *found.children):
        assert 0 <= part.size < 2**63
        assert Digest.parse(str(part.digest)) == part.digest
        assert "\0" not in part.media_type + "".join(part.urls)


CONTENT_TYPES = st.none() | st.text() | st.sampled_from(sorted(media_types.MANIFEST_TYPES | media_types.SCHEMA1_TYPES))


@given(st.binary(max_size=500), CONTENT_TYPES)
def test_any_bytes_are_a_manifest_or_refused(body: bytes, content_type: str | None) -> None:
    check(body, content_type)
    config_platform(body)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(sorted(media_types.MANIFEST_TYPES)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
KEYS = st.sampled_from(
    ["schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "artifactType", "annotations", "size",
     "digest", "platform", "data", "urls", "os", "os.features", "Labels"]
)  # fmt: skip


def mutate(value: Any, draw: Any) -> Any:
    """Somewhere in the document, a value is replaced, a key added, or an entry lost."""
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value)))
        return value | {key: mutate(value[key], draw)}
    if isinstance(value, list) and value and draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], mutate(value[at], draw), *value[at + 1 :]]
    if isinstance(value, dict) and draw(st.booleans()):
        key = draw(KEYS)
        if key in value and draw(st.booleans()):
            return {name: item for name, item in value.items() if name != key}
        return value | {key: draw(JSON)}
    return draw(JSON)


@given(st.data(), st.sampled_from([image, index]), st.integers(1, 3), CONTENT_TYPES)
def test_a_mutated_manifest_is_a_manifest_or_refused(
    data: st.DataObject, make: Any, mutations: int, content_type: str | None
) -> None:
    document = make(artifactType="a/b", subject=descriptor(media_types.OCI_MANIFEST), annotations={"a": "b"})
    for _ in range(mutations):
        document = mutate(document, data.draw)
    check(json.dumps(document).encode(), content_type)


@given(st.data(), st.sampled_from([image, index]))
def test_a_manifest_with_flipped_and_lost_bytes_is_a_manifest_or_refused(data: st.DataObject, make: Any) -> None:
    body = bytearray(json.dumps(make(annotations={"a": "\\u0000\u0000"})).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    check(bytes(body), None)


def test_platform_and_labels_come_from_the_config() -> None:
    config = {
        "os": "linux",
        "architecture": "arm",
        "variant": "v7",
        "os.version": "1",
        "os.features": ["x"],
        "config": {"Labels": {"a": "b", "n": 1, "nul": "\0"}, "Env": ["X=y"]},
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    platform, labels = config_platform(json.dumps(config).encode())
    assert platform == Platform("linux", "arm", "v7", "1", ("x",))
    assert str(platform) == "linux/arm/v7"
    assert labels == {"a": "b"}


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b'{"config":null}', b'{"os":5}', b'{"config":{"Labels":[]}}', b"not json"]
)
def test_a_config_that_says_nothing_gives_nothing(body: bytes) -> None:
    assert config_platform(body) == (None, {})


def test_a_config_beyond_the_limit_is_not_looked_at() -> None:
    body = b'{"os":"linux"}'
    assert config_platform(body)[0] == Platform("linux", "")
    assert config_platform(body + b" " * manifests.MAX_CONFIG_SIZE) == (None, {})


@given(JSON, JSON, JSON)
def test_any_config_gives_strings_only(os: Any, labels: Any, inner: Any) -> None:
    for config in ({"os": os, "config": {"Labels": labels}}, {"os": "linux", "config": inner}):
        platform, found = config_platform(json.dumps(config).encode())
        assert platform is None or (isinstance(platform.os, str) and "\0" not in str(platform))
        assert all(isinstance(k, str) and isinstance(v, str) for k, v in found.items())
