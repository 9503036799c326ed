"""Manifests: what the bytes say, checked once, where they enter.

A manifest is stored and served as the exact bytes received; what is read here decides what it is, what it names and
therefore what must exist before it may be served. Two readers must never take the same bytes for different things, so
whatever is ambiguous is refused: layers beside manifests, a media type that contradicts the Content-Type
(CVE-2021-41190), JSON beyond what the struct types below accept. What is merely sloppy and harmless (null for an
absent list, extra fields) is accepted, because Go's tools write it and every client reads it.

Hostile 4 MiB can take half a second: callers parse large bodies in a thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from entrepot.oci import media_types
from entrepot.oci.digest import MAX_LENGTH as MAX_DIGEST_LENGTH
from entrepot.oci.digest import Digest, DigestInvalid
from entrepot.oci.errors import ErrorCode, GrammarError, excerpt

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_MANIFEST_SIZE: Final = 4 * 1024 * 1024
"""Bytes. What the distribution specification asks every registry to accept at least, and most accept at most."""
MAX_CONFIG_SIZE: Final = 8 * 1024 * 1024
"""Bytes of an image config that are looked at for platform and labels."""
MAX_DEPTH: Final = 64
"""Levels of nested JSON; an index has six."""


class ManifestInvalid(GrammarError):
    """Not a manifest that may be stored. The message says what is wrong with it."""

    code = ErrorCode.MANIFEST_INVALID


class ManifestUnsupported(ManifestInvalid):
    """A Docker schema 1 manifest: understood, and refused. The image has to be pushed again by a current tool."""


class Kind(StrEnum):
    """What a manifest is to a user; told by `classify`."""

    IMAGE = "image"
    INDEX = "index"
    ARTIFACT = "artifact"
    HELM = "helm"
    BOOTABLE = "bootable"
    FLATPAK = "flatpak"
    COSIGN_SIGNATURE = "cosign_signature"
    COSIGN_ATTESTATION = "cosign_attestation"
    COSIGN_SBOM = "cosign_sbom"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on (image-index.md, "platform"). Empty strings where nothing is said."""

    os: str
    architecture: str
    variant: str | None = None
    os_version: str | None = None
    os_features: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    def __str__(self) -> str:
        """`os/architecture[/variant]`."""
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to content: its type, name and length (descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    """Bytes."""
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    platform: Platform | None = None
    data: bytes | None = None
    """The content itself, if the manifest carries it and it is what size and digest say; otherwise None."""
    artifact_type: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest or an index, checked."""

    media_type: str
    kind: Kind
    """As far as the manifest itself tells; the labels in an image's config can say more (`classify`)."""
    body: bytes = field(repr=False)
    """The exact bytes."""
    digest: Digest
    """Of the body, in the algorithm that was asked for."""
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    children: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    artifact_type: str | None = None
    """As written. For referrers, the specification falls back to the config's media type: `referrer_type`."""
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def is_index(self) -> bool:
        return self.media_type in media_types.INDEX_TYPES

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Config and layers, in this order, each digest once."""
        parts = (*((self.config,) if self.config is not None else ()), *self.layers)
        return tuple({part.digest: part for part in reversed(parts)}.values())[::-1]

    @property
    def referrer_type(self) -> str | None:
        """The artifactType in a list of referrers (distribution specification, "Listing Referrers")."""
        return self.artifact_type or (self.config.media_type if self.config is not None else None)


# What is read of the JSON. Null and absent are the same; unknown fields are skipped.
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_MediaType = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_Annotations = dict[str, str | None]


class _PlatformWire(msgspec.Struct, frozen=True):
    os: str | None = None
    architecture: str | None = None
    variant: str | None = None
    os_version: str | None = msgspec.field(default=None, name="os.version")
    os_features: tuple[str, ...] | None = msgspec.field(default=None, name="os.features")
    features: tuple[str, ...] | None = None


class _DescriptorWire(msgspec.Struct, frozen=True, rename="camel"):
    media_type: _MediaType
    digest: Annotated[str, msgspec.Meta(max_length=MAX_DIGEST_LENGTH)]
    size: _Size
    urls: tuple[str, ...] | None = None
    annotations: _Annotations | None = None
    platform: _PlatformWire | None = None
    data: bytes | None = None
    artifact_type: str | None = None


class _ManifestWire(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int | None = None
    media_type: str | None = None
    config: _DescriptorWire | None = None
    layers: tuple[_DescriptorWire, ...] | None = None
    # Some writers say null for an index without entries: unlike all else, this differs from leaving it out.
    manifests: tuple[_DescriptorWire, ...] | msgspec.UnsetType | None = msgspec.UNSET
    subject: _DescriptorWire | None = None
    artifact_type: Annotated[str, msgspec.Meta(max_length=255)] | None = None
    annotations: _Annotations | None = None


class _ProbeWire(msgspec.Struct, frozen=True, rename="camel"):
    """Read first, because a schema 1 manifest fails the types above in confusing places."""

    schema_version: Any = None
    media_type: Any = None


class _ContainerConfigWire(msgspec.Struct, frozen=True):
    labels: Any = msgspec.field(default=None, name="Labels")


class _ConfigWire(_PlatformWire, frozen=True):
    config: _ContainerConfigWire | None = None


_probe_decoder: Final = msgspec.json.Decoder(_ProbeWire)
_manifest_decoder: Final = msgspec.json.Decoder(_ManifestWire)
_config_decoder: Final = msgspec.json.Decoder(_ConfigWire)
# ValueError covers invalid UTF-8 and integers longer than the interpreter converts.
_DECODE_ERRORS: Final = (msgspec.MsgspecError, ValueError, RecursionError)


def parse(
    body: bytes,
    *,
    content_type: str | None = None,
    limit: int = MAX_MANIFEST_SIZE,
    algorithm: str = "sha256",
    strict: bool = False,
) -> Manifest:
    """`content_type` is the header as received; `algorithm` that of the digest wanted (the one it was asked for by).

    The media type is the body's own; where the body has none, the Content-Type if it is one of a manifest; otherwise
    what the content looks like. `strict`, for what is pushed: the Content-Type must name the type, and a body that has
    none is one of OCI's, so that two clients who push the same bytes never say different things of them.
    Raises ManifestInvalid and nothing else, whatever the bytes.
    """
    if len(body) > limit:
        raise ManifestInvalid(f"a manifest has at most {limit} bytes, this one has {len(body)}")
    header = media_types.parse_content_type(content_type)
    wire = _decode(body, header)
    media_type = _stated_media_type(wire, header) if strict else _media_type(wire, header)
    _check_shape(wire, media_type)
    is_oci = media_type in media_types.OCI_MANIFEST_TYPES
    manifest = Manifest(
        media_type=media_type,
        kind=Kind.UNKNOWN,
        body=bytes(body),
        digest=Digest.of(body, algorithm),
        config=_descriptor(wire.config) if wire.config is not None else None,
        layers=tuple(map(_descriptor, wire.layers or ())),
        children=tuple(map(_descriptor, wire.manifests or ())),
        subject=_descriptor(wire.subject) if is_oci and wire.subject is not None else None,
        artifact_type=(wire.artifact_type or None) if is_oci else None,
        annotations=_annotations(wire.annotations),
    )
    return with_labels(manifest, {})


def with_labels(manifest: Manifest, labels: Mapping[str, str]) -> Manifest:
    """The same manifest, its kind told anew with the labels of its config."""
    kind = classify(manifest, labels)
    if kind is manifest.kind:
        return manifest
    values = {name: getattr(manifest, name) for name in Manifest.__slots__}
    return Manifest(**{**values, "kind": kind})


def classify(manifest: Manifest, labels: Mapping[str, str]) -> Kind:
    """What a manifest is. The first that applies wins: index; bootable (bootc) and flatpak, by label or annotation;
    Helm, by its config; cosign's, by the layers; artifact; image.
    """
    if manifest.is_index:
        return Kind.INDEX
    if "1" in (manifest.annotations.get("containers.bootc"), labels.get("containers.bootc")):
        return Kind.BOOTABLE
    if "org.flatpak.ref" in labels or "org.flatpak.ref" in manifest.annotations:
        return Kind.FLATPAK
    config_type = manifest.config.media_type if manifest.config is not None else ""
    if config_type == media_types.HELM_CONFIG:
        return Kind.HELM
    cosign = _classify_cosign(manifest)
    if cosign is not None:
        return cosign
    if manifest.media_type == media_types.OCI_MANIFEST:
        is_image = config_type in media_types.IMAGE_CONFIG_TYPES and not manifest.artifact_type
        return Kind.IMAGE if is_image else Kind.ARTIFACT
    # Early Docker versions pushed configs as plain bytes.
    is_image = config_type in media_types.IMAGE_CONFIG_TYPES or config_type == media_types.OCTET_STREAM
    return Kind.IMAGE if is_image else Kind.UNKNOWN


def config_platform(config: bytes) -> tuple[Platform | None, dict[str, str]]:
    """Platform and labels out of an image config; `(None, {})` where it says nothing that can be read.

    Never raises: the config of an artifact may be anything at all, and none of it is needed to serve it.
    """
    if len(config) > MAX_CONFIG_SIZE:
        return None, {}
    try:
        wire = _config_decoder.decode(config)
    except _DECODE_ERRORS:
        return None, {}
    found = wire.config.labels if wire.config is not None else None
    labels = found if isinstance(found, dict) else {}
    # PostgreSQL's text holds no NUL character.
    clean = {k: v for k, v in labels.items() if isinstance(v, str) and "\0" not in k and "\0" not in v}
    platform = _platform(wire)
    says = (
        platform.os,
        platform.architecture,
        platform.variant,
        platform.os_version,
        platform.os_features,
        platform.features,
    )
    return (None if says[:2] == ("", "") or _has_nul(says) else platform), clean


def _classify_cosign(manifest: Manifest) -> Kind | None:
    types = {layer.media_type for layer in manifest.layers}
    if not types:
        return None
    if types == {media_types.COSIGN_SIMPLE_SIGNING}:
        return Kind.COSIGN_SIGNATURE
    if types == {media_types.DSSE_ENVELOPE}:
        return Kind.COSIGN_ATTESTATION
    if types <= media_types.SBOM_TYPES:
        return Kind.COSIGN_SBOM
    if all(media_type.startswith(media_types.SIGSTORE_BUNDLE_PREFIX) for media_type in types):
        # A bundle holds either; cosign says which in annotations of the manifest.
        content = manifest.annotations.get("dev.sigstore.bundle.content")
        predicate = manifest.annotations.get("dev.sigstore.bundle.predicateType", "")
        signature = content == "message-signature" or predicate.startswith("https://sigstore.dev/cosign/sign/")
        return Kind.COSIGN_SIGNATURE if signature else Kind.COSIGN_ATTESTATION
    return None


def _decode(body: bytes, header: str | None) -> _ManifestWire:
    try:
        probe = _probe_decoder.decode(body)
        _refuse_schema1(probe, header)
        wire = _manifest_decoder.decode(body)
    except ManifestInvalid:
        raise
    except RecursionError:
        raise ManifestInvalid(f"the manifest nests deeper than {MAX_DEPTH} levels") from None
    except _DECODE_ERRORS as error:
        raise ManifestInvalid(f"the manifest cannot be read: {excerpt(str(error), 300)}") from error
    if _deeper_than(body, MAX_DEPTH):
        raise ManifestInvalid(f"the manifest nests deeper than {MAX_DEPTH} levels")
    # PostgreSQL's text holds no NUL character; JSON can only write one as this escape.
    if b"\\u0000" in body and _has_nul(wire):
        raise ManifestInvalid("the manifest holds a NUL character")
    if wire.schema_version != 2:
        raise ManifestInvalid(f"schemaVersion is 2 in every manifest, not {excerpt(str(wire.schema_version))}")
    return wire


def _refuse_schema1(probe: _ProbeWire, header: str | None) -> None:
    stated = probe.media_type if probe.media_type is not None else header
    by_type = isinstance(stated, str) and stated in media_types.SCHEMA1_TYPES
    if by_type or (type(probe.schema_version) is int and probe.schema_version == 1):
        raise ManifestUnsupported(
            "this is a Docker schema 1 manifest, a format without content digests that is no longer supported: push"
            " the image again with a current tool"
        )


def _media_type(wire: _ManifestWire, header: str | None) -> str:
    if wire.media_type:
        if wire.media_type not in media_types.MANIFEST_TYPES:
            raise ManifestInvalid(f"mediaType {excerpt(wire.media_type)} is not one of a manifest")
        if header is not None and header != wire.media_type and header not in media_types.GENERIC_TYPES:
            raise ManifestInvalid(f"mediaType is {wire.media_type}, but the Content-Type is {excerpt(header, 255)}")
        return wire.media_type
    if header in media_types.MANIFEST_TYPES:
        return header
    return _guess(wire)


def _stated_media_type(wire: _ManifestWire, header: str | None) -> str:
    if header not in media_types.MANIFEST_TYPES:
        known = ", ".join(sorted(media_types.MANIFEST_TYPES))
        raise ManifestInvalid(f"the Content-Type is {excerpt(header or '', 255)}, and not one of {known}")
    if wire.media_type and wire.media_type != header:
        raise ManifestInvalid(f"mediaType is {excerpt(wire.media_type, 255)}, but the Content-Type is {header}")
    if not wire.media_type and header not in media_types.OCI_MANIFEST_TYPES:
        raise ManifestInvalid(f"a manifest of type {header} names its mediaType, this one does not")
    return header


def _guess(wire: _ManifestWire) -> str:
    """Docker's types always name themselves, so this is about OCI; Docker's are told by what they refer to."""
    if wire.manifests is not msgspec.UNSET and wire.manifests is not None:
        entries = {entry.media_type for entry in wire.manifests}
        docker = bool(entries) and entries <= {media_types.DOCKER_MANIFEST, media_types.DOCKER_MANIFEST_LIST}
        return media_types.DOCKER_MANIFEST_LIST if docker else media_types.OCI_INDEX
    if wire.config is not None:
        docker = wire.config.media_type in {media_types.DOCKER_CONFIG, media_types.DOCKER_PLUGIN_CONFIG}
        return media_types.DOCKER_MANIFEST if docker else media_types.OCI_MANIFEST
    raise ManifestInvalid("neither the manifest nor its Content-Type says what it is")


def _check_shape(wire: _ManifestWire, media_type: str) -> None:
    if media_type in media_types.INDEX_TYPES:
        if wire.manifests is msgspec.UNSET:
            raise ManifestInvalid(f"a manifest of type {media_type} has a list of manifests, this one has none")
        if wire.layers is not None or wire.config is not None:
            raise ManifestInvalid("a manifest has either config and layers, or manifests, never both")
        return
    if wire.manifests is not msgspec.UNSET and wire.manifests is not None:
        raise ManifestInvalid("a manifest has either config and layers, or manifests, never both")
    if wire.config is None:
        raise ManifestInvalid(f"a manifest of type {media_type} has a config, this one has none")


def _descriptor(wire: _DescriptorWire) -> Descriptor:
    try:
        digest = Digest.parse(wire.digest)
    except DigestInvalid as error:
        raise ManifestInvalid(f"a descriptor of type {excerpt(wire.media_type, 255)}: {error}") from error
    return Descriptor(
        media_type=wire.media_type,
        digest=digest,
        size=wire.size,
        urls=wire.urls or (),
        annotations=_annotations(wire.annotations),
        platform=_platform(wire.platform) if wire.platform is not None else None,
        data=_embedded(wire, digest),
        artifact_type=wire.artifact_type or None,
    )


def _embedded(wire: _DescriptorWire, digest: Digest) -> bytes | None:
    """descriptor.md, "data": to be used only if it is the content. A lie is not worth refusing the manifest for."""
    if wire.data is None or len(wire.data) != wire.size:
        return None
    return wire.data if Digest.of(wire.data, digest.algorithm) == digest else None


def _platform(wire: _PlatformWire) -> Platform:
    return Platform(
        os=wire.os or "",
        architecture=wire.architecture or "",
        variant=wire.variant or None,
        os_version=wire.os_version or None,
        os_features=wire.os_features or (),
        features=wire.features or (),
    )


def _annotations(wire: _Annotations | None) -> dict[str, str]:
    return {key: value or "" for key, value in wire.items()} if wire else {}


def _has_nul(value: object) -> bool:
    """Whether any string in a decoded value holds one. The types above bound the depth."""
    match value:
        case str():
            return "\0" in value
        case dict():
            return any(_has_nul(key) or _has_nul(item) for key, item in value.items())
        case list() | tuple():
            return any(map(_has_nul, value))
        case msgspec.Struct():
            return any(_has_nul(getattr(value, name)) for name in value.__struct_fields__)
    return False


_SQUARE = bytes.maketrans(b"{}", b"[]")
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))


def _deeper_than(body: bytes, depth: int) -> bool:
    """Whether valid JSON nests deeper. Whole-body operations only: a Python loop over 4 MiB would take a second."""
    if body.count(b"[") + body.count(b"{") <= depth:
        return False
    # Without its escaped backslashes, then its escaped quotes, every other piece between quotes is outside of strings.
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = b"".join(unescaped.split(b'"')[::2]).translate(_SQUARE, _ALL_BUT_BRACKETS)
    for _ in range(depth):
        brackets = brackets.replace(b"[]", b"")  # the innermost level
        if not brackets:
            return False
    return True
