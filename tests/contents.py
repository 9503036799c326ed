"""Content for tests: small images and indexes, stored and committed through the same functions that the parts use."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from entrepot.db import content
from entrepot.db.content import Cause, Change, Commit, LedgerEntry, ManifestRecord, StoredBlob
from entrepot.db.pool import Connection
from entrepot.oci import media_types
from entrepot.oci.manifest import Manifest, config_platform, parse

if TYPE_CHECKING:
    from entrepot.blobs.store import BlobStore

TEST = Cause("Test", "test")


def sha256(data: bytes) -> str:
    """The digest of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def descriptor(data: bytes, media_type: str, **more: object) -> dict[str, object]:
    """An OCI descriptor of bytes."""
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **more}


@dataclass(frozen=True)
class Image:
    """An image: its manifest, and the blobs it names."""

    body: bytes
    config: bytes
    layers: tuple[bytes, ...]

    @property
    def manifest(self) -> Manifest:
        return parse(self.body, content_type=media_types.OCI_MANIFEST)

    @property
    def digest(self) -> str:
        return sha256(self.body)

    @property
    def blobs(self) -> tuple[bytes, ...]:
        return (self.config, *self.layers)


def image(*layers: bytes, architecture: str = "amd64", labels: dict[str, str] | None = None, **extra: object) -> Image:
    """An OCI image of these layers."""
    config = json.dumps(
        {
            "os": "linux",
            "architecture": architecture,
            "config": {"Labels": labels or {}},
            "rootfs": {"layers": [sha256(x) for x in layers]},
        }
    ).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_MANIFEST,
        "config": descriptor(config, media_types.OCI_CONFIG),
        "layers": [descriptor(layer, media_types.OCI_LAYER) for layer in layers],
        **extra,
    }
    return Image(json.dumps(manifest).encode(), config, layers)


def index(*images: Image) -> Manifest:
    """An OCI index of images."""
    body = {
        "schemaVersion": 2,
        "mediaType": media_types.OCI_INDEX,
        "manifests": [
            descriptor(
                i.body,
                media_types.OCI_MANIFEST,
                platform={"os": "linux", "architecture": json.loads(i.config)["architecture"]},
            )
            for i in images
        ],
    }
    return parse(json.dumps(body).encode(), content_type=media_types.OCI_INDEX)


async def make_repository(owner: Connection, *, namespace: str = "demo", name: str = "app") -> int:
    """A repository as the operator makes it; gives its id."""
    made: int = await owner.fetchval(
        "insert into repository (namespace, name, resource_uid) values ($1, $2, $3) returning id",
        namespace,
        name,
        uuid.uuid4(),
    )
    return made


async def make_distribution(
    owner: Connection, repository: int, *, base_path: str = "demo/app", access: str = "Public", namespace: str = "demo"
) -> uuid.UUID:
    """A distribution as the operator makes it; gives its uuid."""
    identity = uuid.uuid4()
    await owner.execute(
        "insert into base_path_claim (path, namespace, distribution) values ($1, $2, $3)",
        base_path,
        namespace,
        identity,
    )
    await owner.execute(
        "insert into distribution (uuid, namespace, name, base_path, repository, access) values ($1, $2, $3, $4, $5, $6)",
        identity, namespace, base_path.replace("/", "-"), base_path, repository, access,
    )  # fmt: skip
    return identity


async def store(owner: Connection, repository: int, *blobs: bytes, s3: BlobStore | None = None) -> None:
    """Store blobs and link them to a repository; larger ones go to S3."""
    stored = []
    for data in blobs:
        if len(data) <= content.INLINE_LIMIT:
            stored.append(StoredBlob(digest=sha256(data), size=len(data), inline=data))
            continue
        assert s3 is not None, "blobs that are not small need an S3 store"
        [key] = await content.begin_objects(owner, owner="test", count=1)
        await s3.put(key, data)
        stored.append(StoredBlob(digest=sha256(data), size=len(data), object_key=key))
    unique = {blob.digest: blob for blob in stored}
    await content.store_blobs(owner, list(unique.values()))
    await content.link_blobs(owner, repository, sizes={digest: blob.size for digest, blob in unique.items()})


async def put(owner: Connection, *manifests: Manifest | Image) -> list[int]:
    """Store manifests; gives their ids in order."""
    records = []
    for item in manifests:
        if isinstance(item, Image):
            platform, labels = config_platform(item.config)
            records.append(
                ManifestRecord(
                    manifest=item.manifest,
                    os=platform.os if platform else None,
                    architecture=platform.architecture if platform else None,
                    labels=labels,
                )
            )
        else:
            records.append(ManifestRecord(manifest=item))
    async with owner.transaction():
        ids = await content.put_manifests(owner, records)
    return [ids[str(record.manifest.digest)] for record in records]


async def commit(
    owner: Connection, repository: int, change: Change, *, ledger: LedgerEntry | None = None, cause: Cause = TEST
) -> Commit:
    """Commit a change, as a test if nothing else is said."""
    return await content.commit(owner, repository, change=change, cause=cause, ledger=ledger)


async def push(
    owner: Connection, repository: int, tag: str, *images: Image, s3: BlobStore | None = None, cause: Cause = TEST
) -> str:
    """Store and tag an image, or an index of several; gives the digest of what is tagged."""
    await store(owner, repository, *(blob for one in images for blob in one.blobs), s3=s3)
    tagged: Manifest | Image = images[0] if len(images) == 1 else index(*images)
    ids = await put(owner, *images, *([tagged] if isinstance(tagged, Manifest) else []))
    await commit(owner, repository, Change(tags={tag: ids[-1]}, add_manifests=ids), cause=cause)
    return str(tagged.digest)
