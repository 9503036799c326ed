"""One function a parser: any bytes are read, or refused with the error that a client is told; never another error, and never forever.

What was read is checked too: parts lie within the whole, and what can be written is read back as the same.
"""

from __future__ import annotations

from collections.abc import Callable

from entrepot.errors import RegistryError
from entrepot.oci.challenge import parse_challenges
from entrepot.oci.digest import Digest
from entrepot.oci.errors import GrammarError
from entrepot.oci.link import next_url
from entrepot.oci.manifest import config_platform, parse
from entrepot.oci.media_types import OCI_INDEX, OCI_MANIFEST
from entrepot.oci.paging import parse_page
from entrepot.oci.ranges import parse_range, parse_upload_range, upload_range
from entrepot.oci.reference import Reference, parse_name, parse_reference
from entrepot.oci.scope import format_scopes, parse_scopes
from entrepot_registry.conditions import accepts, is_known, range_applies
from entrepot_registry.routes import parse_route

__all__ = ["SEEDS", "TARGETS"]

DIGEST = "sha256:" + "0" * 64


def as_text(data: bytes) -> str:
    """As aiohttp hands out header values and request lines."""
    return data.decode("utf-8", "surrogateescape")


def is_refusal(error: GrammarError | RegistryError, *statuses: int) -> None:
    """The client is told that it is his fault."""
    assert error.status in statuses


def route(data: bytes) -> None:
    try:
        found = parse_route(as_text(data))
    except (GrammarError, RegistryError) as error:
        is_refusal(error, 400, 404, 405, 413)
        return
    if found.name is not None:
        assert parse_name(found.name) == found.name
    for part in ("tag_or_digest", "digest"):
        try:
            getattr(found, part)
        except GrammarError as error:
            is_refusal(error, 400)


def names(data: bytes) -> None:
    text = as_text(data)
    for read in (parse_reference, Digest.parse, Reference.parse):
        try:
            found = read(text)
        except GrammarError:
            continue
        # Told to be a host by a capital letter alone, which is not kept: it would be read as a part of the name.
        if (
            isinstance(found, Reference)
            and found.host is not None
            and not set(found.host) & set(".:[")
            and found.host != "localhost"
        ):
            continue
        assert read(str(found)) == found


def manifest(data: bytes) -> None:
    for content_type in (None, OCI_MANIFEST, OCI_INDEX):
        try:
            found = parse(data, content_type=content_type)
        except GrammarError as error:
            is_refusal(error, 400, 404, 405, 413)
            continue
        assert found.body == data
        assert found.digest == Digest.of(data)
        assert not (found.layers and found.children)


def config(data: bytes) -> None:
    platform, labels = config_platform(data)
    assert platform is None or isinstance(platform.os, str)
    assert all(isinstance(value, str) and "\0" not in value for value in labels.values())


def ranges(data: bytes) -> None:
    text = as_text(data)
    for size in (0, 1, 2048, 1 << 40):
        try:
            part = parse_range(text, size)
        except GrammarError as error:
            is_refusal(error, 416)
            continue
        assert part is None or 0 <= part.start <= part.end < size
    try:
        chunk = parse_upload_range(text)
    except GrammarError as error:
        is_refusal(error, 400)
        return
    assert chunk.length > 0
    assert parse_upload_range(str(chunk)) == chunk
    assert upload_range(chunk.end + 1) == f"0-{chunk.end}"


def accept(data: bytes) -> None:
    values = as_text(data).split("\n")
    assert accepts(values, OCI_MANIFEST) in {True, False}
    assert is_known(values, DIGEST) in {True, False}
    assert range_applies(values[0], DIGEST) in {True, False}


def scope(data: bytes) -> None:
    try:
        found = parse_scopes(as_text(data))
    except GrammarError:
        return
    assert set(parse_scopes(format_scopes(found))) == set(found)


def challenge(data: bytes) -> None:
    text = as_text(data)
    for read in (parse_challenges, next_url):
        try:
            read(text)
        except GrammarError:
            continue


def page(data: bytes) -> None:
    n, _, last = as_text(data).partition("&")
    try:
        found = parse_page(n, last, default=100, maximum=1000)
    except GrammarError as error:
        is_refusal(error, 400)
        return
    assert 0 <= found.limit <= 1000


TARGETS: dict[str, Callable[[bytes], None]] = {
    "route": route, "names": names, "manifest": manifest, "config": config, "ranges": ranges, "accept": accept, "scope": scope,
    "challenge": challenge, "page": page,
}  # fmt: skip

SEEDS: dict[str, tuple[bytes, ...]] = {
    "route": (
        b"/v2/", b"/v2/a/b/manifests/latest", b"/v2/a/blobs/uploads/", b"/v2/a/tags/list", b"/v2/a/referrers/" + DIGEST.encode(),
        b"/extensions/v2/a/signatures/sha256%3a" + b"0" * 64, b"/extensions/entrepot/v1/a/versions/1...2", b"/v2/a/blobs/uploads/id",
    ),
    "names": (b"localhost:5000/a__b/c-d:v1.0@" + DIGEST.encode(), DIGEST.encode(), b"sha512:" + b"f" * 128, b"latest"),
    "manifest": (
        b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1'
        b'+json","digest":"' + DIGEST.encode() + b'","size":2,"data":"e30="},"layers":[],"annotations":{"a":"b"},"subject":null}',
        b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest'
        b'.v1+json","digest":"' + DIGEST.encode() + b'","size":2,"platform":{"os":"linux","architecture":"arm64","variant":"v8"}}]}',
        b'{"schemaVersion":1,"fsLayers":[]}',
    ),
    "config": (b'{"os":"linux","architecture":"amd64","config":{"Labels":{"a":"b"}},"rootfs":{"type":"layers","diff_ids":[]}}',),
    "ranges": (b"bytes=0-1", b"bytes=-5", b"bytes=5-", b"0-1023", b"BYTES= 1-2 "),
    "accept": (b"application/vnd.oci.image.manifest.v1+json;q=0.5, */*;q=0", b'W/"x", "' + DIGEST.encode() + b'"', b"*/*\ntext/*;q=1.000"),
    "scope": (b"repository:a/b:pull,push", b"registry:catalog:*", b"repository(plugin):localhost:5000/a:pull repository:a:delete"),
    "challenge": (b'Bearer realm="https://a/token",service="b",scope="repository:a:pull", Basic realm="x"', b'</v2/_catalog?n=1>; rel="next"'),
    "page": (b"10&a", b"0&", b"99999999999999999999&x"),
}  # fmt: skip
