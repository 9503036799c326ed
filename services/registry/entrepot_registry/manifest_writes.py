"""Manifests that come in and go: PUT and DELETE, each one version in one transaction.

A manifest is judged before it is stored: its grammar here, what it needs by the database, under the repository's lock. The same PUT again
changes nothing and is answered alike, so a client that never saw the answer may repeat it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web
from multidict import CIMultiDict

from entrepot.blobs.budget import ByteBudget
from entrepot.db.content import ManifestRecord, delete_manifest, push_manifest
from entrepot.db.manifests import FoundPush, PushQuery, find_pushes
from entrepot.db.pool import Pool
from entrepot.errors import CommitRefused, RegistryError
from entrepot.oci.digest import Digest
from entrepot.oci.errors import GrammarError
from entrepot.oci.manifest import Manifest, ManifestInvalid, config_platform, parse
from entrepot.oci.media_types import MANIFEST_TYPES, is_foreign_layer
from entrepot.oci.reference import parse_tag
from entrepot.web.calls import Call
from entrepot_registry.access import Guard
from entrepot_registry.documents import SMALL, read_document
from entrepot_registry.lookups import Batcher
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.pages import query_of
from entrepot_registry.routes import Route
from entrepot_registry.settings import RegistrySettings
from entrepot_registry.statements import Statement
from entrepot_registry.writing import Targets, admit_writer, refused_write, writable_place

__all__ = ["ManifestWrites"]


class ManifestWrites:
    """PUT and DELETE of the endpoint `manifests/<reference>`. `async with` opens its lookups."""

    def __init__(
        self, pool: Pool, guard: Guard, *, targets: Targets, settings: RegistrySettings, metrics: RegistryMetrics
    ) -> None:
        self._guard = guard
        self._targets = targets
        self._settings = settings
        self._budget = ByteBudget(max(settings.manifest_budget, settings.manifest_size))
        self._pushes: Batcher[PushQuery, FoundPush] = Batcher(
            pool, "find_pushes", find_pushes, settings=settings, metrics=metrics
        )
        self._push = Statement(pool, "push_manifest", timeout=settings.commit_timeout, metrics=metrics)
        self._remove = Statement(pool, "delete_manifest", timeout=settings.commit_timeout, metrics=metrics)

    async def __aenter__(self) -> ManifestWrites:
        await self._pushes.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pushes.__aexit__()

    async def put(self, call: Call, route: Route) -> web.Response:
        """Raises RegistryError, GrammarError and `DatabaseUnavailable`."""
        name = route.name or ""
        reference = route.tag_or_digest
        tags = self._tags(call, reference)
        grant = await self._guard.identify(call, name=name, action="push")
        async with read_document(
            call, limit=self._settings.manifest_size, budget=self._budget, timeout=self._settings.manifest_timeout
        ) as body:
            try:
                manifest = await self._parse(call, body, reference)
            except (GrammarError, RegistryError):
                # Whether the name takes a push at all comes first.
                admit_writer(call, name, grant, await self._targets.ask(name), guard=self._guard)
                raise
            found = await self._pushes.ask(PushQuery(name, _unread_config(manifest)))
            place = admit_writer(call, name, grant, found.target, guard=self._guard)
            version = await self._commit(name, place.repository, _record(manifest, found.config), str(reference), tags)
        headers = CIMultiDict(
            {
                "Location": f"/v2/{name}/manifests/{manifest.digest}",
                "Docker-Content-Digest": str(manifest.digest),
                "Entrepot-Version": str(version),
            }
        )
        if manifest.subject is not None:
            headers["OCI-Subject"] = str(manifest.subject.digest)
        if isinstance(reference, Digest):
            for tag in tags:
                headers.add("OCI-Tag", tag)
        return web.Response(status=201, headers=headers)

    async def delete(self, call: Call, route: Route) -> web.Response:
        """Raises RegistryError, GrammarError and `DatabaseUnavailable`."""
        name = route.name or ""
        reference = route.tag_or_digest
        place = await writable_place(call, name, guard=self._guard, targets=self._targets, action="delete")
        what = {"digest" if isinstance(reference, Digest) else "tag": str(reference)}
        try:
            version = await self._remove.run(lambda c: delete_manifest(c, place.repository, **what))
        except CommitRefused as error:
            raise refused_write(error, name, action="delete") from error
        if version is None:
            raise RegistryError(
                404, "MANIFEST_UNKNOWN", "this repository has no such manifest",
                detail={"name": name, "reference": str(reference)},
            )  # fmt: skip
        return web.Response(status=202, headers={"Entrepot-Version": str(version)})

    def _tags(self, call: Call, reference: Digest | str) -> list[str]:
        """What the manifest is to be tagged with: the reference, or what the query says (`?tag=`, beside a digest)."""
        asked = list(dict.fromkeys(query_of(call).getall("tag", ())))
        if not isinstance(reference, Digest):
            if asked:
                raise RegistryError(400, "UNSUPPORTED", "further tags are taken with a manifest that is put by digest")
            return [str(reference)]
        if len(asked) > self._settings.manifest_tags:
            raise RegistryError(
                400, "UNSUPPORTED", f"a manifest is tagged with at most {self._settings.manifest_tags} tags at once"
            )
        return [str(parse_tag(tag)) for tag in asked]

    async def _parse(self, call: Call, body: bytes, reference: Digest | str) -> Manifest:
        algorithm = reference.algorithm if isinstance(reference, Digest) else "sha256"
        content_type = call.request.headers.get("Content-Type")

        def read() -> Manifest:
            return parse(
                body, content_type=content_type, limit=self._settings.manifest_size, algorithm=algorithm, strict=True
            )

        manifest = read() if len(body) <= SMALL else await asyncio.to_thread(read)
        if isinstance(reference, Digest) and manifest.digest != reference:
            raise RegistryError(
                400, "DIGEST_INVALID", f"the manifest's digest is {manifest.digest}, not the one it was put by",
                detail={"digest": str(reference)},
            )  # fmt: skip
        return manifest

    async def _commit(
        self, name: str, repository: int, record: ManifestRecord, cause: str, tags: Sequence[str]
    ) -> int | None:
        blobs = _blobs_needed(record.manifest)
        manifests: list[str] = []
        if not self._settings.sparse_indexes:
            for child in record.manifest.children:
                (manifests if child.media_type in MANIFEST_TYPES else blobs).append(str(child.digest))
        try:
            push = await self._push.run(
                lambda c: push_manifest(
                    c, repository, record, cause=cause, tags=tags, blobs_needed=blobs, manifests_needed=manifests
                )
            )
        except CommitRefused as error:
            raise refused_write(error, name) from error
        if push.missing:
            raise _missing(record.manifest, push.missing)
        return push.version


def _unread_config(manifest: Manifest) -> str | None:
    """The config whose labels and platform are worth a look, unless the manifest carries it."""
    config = manifest.config
    return str(config.digest) if config is not None and config.data is None else None


def _record(manifest: Manifest, config: bytes | None) -> ManifestRecord:
    if manifest.config is not None and manifest.config.data is not None:
        config = manifest.config.data
    platform, labels = config_platform(config) if config is not None else (None, {})
    return ManifestRecord(
        manifest=manifest,
        os=platform.os or None if platform else None,
        architecture=platform.architecture or None if platform else None,
        variant=platform.variant if platform else None,
        labels=labels,
    )


def _blobs_needed(manifest: Manifest) -> list[str]:
    """All but the foreign layers that say where else they are."""
    return [str(blob.digest) for blob in manifest.blobs if not (is_foreign_layer(blob.media_type) and blob.urls)]


def _missing(manifest: Manifest, digests: Sequence[str]) -> RegistryError:
    foreign = {str(b.digest) for b in manifest.layers if is_foreign_layer(b.media_type)}
    if set(digests) <= foreign:
        raise ManifestInvalid(f"the foreign layer {digests[0]} has no URLs, nor was it pushed")
    return RegistryError(
        404, "MANIFEST_BLOB_UNKNOWN", f"the manifest names content that this repository does not have: {digests[0]}",
        detail=[{"digest": digest} for digest in digests[:100]],
    )  # fmt: skip
