"""Content to mirror: small images, indexes, and layers of any size that are made as they are read."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Generated:
    """A large layer that is never held in memory: one random mebibyte, each time with its number in front."""

    seed: int
    mebibytes: int

    @property
    def size(self) -> int:
        return self.mebibytes * 1024 * 1024

    def chunks(self) -> Iterator[bytes]:
        block = random.Random(self.seed).randbytes(1024 * 1024)
        for number in range(self.mebibytes):
            yield number.to_bytes(8, "big") + block[8:]

    def digest(self) -> str:
        hasher = hashlib.sha256()
        for chunk in self.chunks():
            hasher.update(chunk)
        return f"sha256:{hasher.hexdigest()}"


@dataclass
class Content:
    """What one upstream repository has."""

    tags: dict[str, str] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes | Generated] = field(default_factory=dict)

    def add_blob(self, data: bytes | Generated) -> dict[str, Any]:
        """Gives its descriptor, without a media type."""
        if isinstance(data, Generated):
            digest, size = data.digest(), data.size
        else:
            digest, size = digest_of(data), len(data)
        self.blobs[digest] = data
        return {"digest": digest, "size": size}

    def add_manifest(self, value: dict[str, Any], *, tag: str | None = None) -> dict[str, Any]:
        """Gives its descriptor."""
        body = json.dumps(value).encode()
        digest = digest_of(body)
        self.manifests[digest] = (value["mediaType"], body)
        if tag is not None:
            self.tags[tag] = digest
        return {"mediaType": value["mediaType"], "digest": digest, "size": len(body)}

    def add_image(
        self, tag: str | None = None, *, layers: list[bytes | Generated] | None = None, architecture: str = "amd64",
        extra_layers: list[dict[str, Any]] | None = None, labels: dict[str, str] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """An image; by default with one small and one larger layer of its own."""
        number = len(self.manifests)
        if layers is None:
            source = random.Random(f"{tag} {number}")
            layers = [source.randbytes(200), source.randbytes(50_000)]
        config = json.dumps(
            {
                "os": "linux",
                "architecture": architecture,
                "config": {"Labels": labels or {}},
                "created": f"{tag} {number}",
            }
        ).encode()
        return self.add_manifest(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {"mediaType": OCI_CONFIG, **self.add_blob(config)},
                "layers": [
                    *({"mediaType": OCI_LAYER, **self.add_blob(layer)} for layer in layers),
                    *(extra_layers or []),
                ],
            },
            tag=tag,
        )

    def add_index(self, tag: str | None, children: list[dict[str, Any]]) -> dict[str, Any]:
        return self.add_manifest({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children}, tag=tag)

    def layers_of(self, tag: str) -> list[str]:
        """The digests of an image's layers."""
        return [layer["digest"] for layer in json.loads(self.manifests[self.tags[tag]][1])["layers"]]
