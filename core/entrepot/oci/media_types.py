"""Media types: what a manifest says it is, and what its parts are.

Sources: the OCI image specification 1.1, media-types.md; Docker's "Image Manifest Version 2, Schema 1" and "Schema
2"; the artifact types are those of the projects that own them (Helm, cosign, sigstore).
"""

from __future__ import annotations

import re
from typing import Final

# Docker, schema 1: recognised in order to be refused with a reason.
DOCKER_MANIFEST_V1: Final = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_MANIFEST_V1_SIGNED: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"

# Docker, schema 2.
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_MANIFEST_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_PLUGIN_CONFIG: Final = "application/vnd.docker.plugin.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.diff.tar.gzip"
DOCKER_LAYER_ZSTD: Final = "application/vnd.docker.image.rootfs.diff.tar.zstd"
DOCKER_FOREIGN_LAYER: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
DOCKER_FOREIGN_LAYER_GZIP: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

# OCI.
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
OCI_NONDISTRIBUTABLE_LAYER: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
OCI_NONDISTRIBUTABLE_LAYER_GZIP: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
OCI_NONDISTRIBUTABLE_LAYER_ZSTD: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"

# Artifacts that are recognised by their config or layers.
HELM_CONFIG: Final = "application/vnd.cncf.helm.config.v1+json"
COSIGN_SIMPLE_SIGNING: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
DSSE_ENVELOPE: Final = "application/vnd.dsse.envelope.v1+json"
SIGSTORE_BUNDLE_PREFIX: Final = "application/vnd.dev.sigstore.bundle"
"""A version follows, written `.v0.3+json` or `+json;version=0.2`."""
SBOM_TYPES: Final = frozenset(
    {
        "application/spdx+json",
        "application/spdx+xml",
        "application/vnd.cyclonedx",
        "application/vnd.cyclonedx+json",
        "application/vnd.cyclonedx+xml",
        "application/vnd.syft+json",
        "spdx+json",
        "spdx+xml",
        "text/spdx",
        "text/spdx+json",
        "text/spdx+xml",
    }
)

OCTET_STREAM: Final = "application/octet-stream"
JSON: Final = "application/json"

SCHEMA1_TYPES: Final = frozenset({DOCKER_MANIFEST_V1, DOCKER_MANIFEST_V1_SIGNED})
IMAGE_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
"""Manifests with a config and layers."""
INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_MANIFEST_LIST})
"""Manifests that list manifests."""
MANIFEST_TYPES: Final = IMAGE_TYPES | INDEX_TYPES
"""All that can be stored and served."""
OCI_MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, OCI_INDEX})
IMAGE_CONFIG_TYPES: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
FOREIGN_LAYER_TYPES: Final = frozenset(
    {
        DOCKER_FOREIGN_LAYER,
        DOCKER_FOREIGN_LAYER_GZIP,
        OCI_NONDISTRIBUTABLE_LAYER,
        OCI_NONDISTRIBUTABLE_LAYER_GZIP,
        OCI_NONDISTRIBUTABLE_LAYER_ZSTD,
    }
)
GENERIC_TYPES: Final = frozenset({OCTET_STREAM, JSON, "text/plain", "text/json", "binary/octet-stream"})
"""What plain file servers and proxies write; it says nothing about what a manifest is."""

ACCEPT: Final = f"{OCI_INDEX}, {OCI_MANIFEST}, {DOCKER_MANIFEST_LIST}, {DOCKER_MANIFEST}"
"""For upstream requests. One header: some registries read only the first. Without schema 1, so that an upstream that
has an image in several forms never picks the one that cannot be stored."""

# RFC 9110 section 8.3.1:
# > media-type = type "/" subtype parameters
# > type       = token
# > subtype    = token
# and section 5.6.2:
# > token      = 1*tchar
_TCHARS = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE = re.compile(rf"{_TCHARS}/{_TCHARS}")
_MAX_CONTENT_TYPE: Final = 1024


def parse_content_type(value: str | None) -> str | None:
    """The media type of a Content-Type header: without parameters, in lower case. None if there is none to be read."""
    if value is None or len(value) > _MAX_CONTENT_TYPE:
        return None
    media_type = value.partition(";")[0].strip(" \t")
    return media_type.lower() if _MEDIA_TYPE.fullmatch(media_type) else None


def is_foreign_layer(media_type: str) -> bool:
    """Whether such a layer may be absent from a registry, and lie at the URLs of its descriptor instead."""
    return media_type in FOREIGN_LAYER_TYPES
