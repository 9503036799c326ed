"""Manifests: fetched by digest, verified, each once, from the roots that tags point at down to the last child of a nested index.

Many tags share images and many indexes share children, so what is fetched is a graph, not a tree. A manifest's outcome is kept by digest
for the length of the run, in a few words; its bytes only until they are stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import asyncpg

from entrepot.blobs.budget import ByteBudget
from entrepot.db.content import ManifestRecord
from entrepot.errors import EntrepotError, UpstreamError, UpstreamInvalid
from entrepot.oci.digest import Digest
from entrepot.oci.manifest import (
    MAX_MANIFEST_SIZE,
    Descriptor,
    Manifest,
    ManifestInvalid,
    ManifestUnsupported,
    config_platform,
    parse,
    with_labels,
)
from entrepot.oci.media_types import MANIFEST_TYPES
from entrepot.upstream.client import UpstreamClient
from entrepot.upstream.transport import TooLarge
from entrepot_syncer.blobs import Blobs
from entrepot_syncer.progress import Progress
from entrepot_syncer.settings import SyncerSettings
from entrepot_syncer.store import RunStore

__all__ = ["Manifests", "NotStorable"]

_CHILDREN_AT_A_TIME = 50
_PARSE_IN_THREAD = 128 * 1024
"""Bytes of a manifest from which on parsing it would hold up the event loop."""


class NotStorable(EntrepotError):
    """A manifest that is what upstream has, and that cannot be mirrored all the same."""

    default_reason = "ManifestInvalid"


@dataclass(frozen=True, slots=True)
class _Stored:
    """A manifest that is here with all that it names."""

    id: int
    children: tuple[str, ...]


class Manifests:
    """The manifests of a run."""

    def __init__(
        self, client: UpstreamClient, store: RunStore, blobs: Blobs, *, settings: SyncerSettings, progress: Progress
    ) -> None:
        self._client = client
        self._store = store
        self._blobs = blobs
        self._settings = settings
        self._progress = progress
        self._budget = ByteBudget(settings.manifest_budget)
        self._outcomes: dict[str, _Stored | EntrepotError] = {}
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._known: dict[str, int] = {}

    async def close(self) -> None:
        for task in self._fetching.values():
            task.cancel()
        await asyncio.gather(*self._fetching.values(), return_exceptions=True)

    def know(self, ids: dict[str, int]) -> None:
        """Manifests of the latest version: all that they name is here, so nothing of them is asked for."""
        self._known.update(ids)

    def id_of(self, digest: str) -> int | EntrepotError:
        """The id of a manifest that was asked for, or why it is not here."""
        if digest in self._known:
            return self._known[digest]
        outcome = self._outcomes[digest]
        return outcome.id if isinstance(outcome, _Stored) else outcome

    def closure(self, roots: Iterable[str]) -> list[int]:
        """The ids of these manifests and of all below them, as far as they are new to the repository."""
        ids: dict[str, int] = {}
        waiting = list(roots)
        while waiting:
            digest = waiting.pop()
            outcome = self._outcomes.get(digest)
            if digest in ids or not isinstance(outcome, _Stored):
                continue
            ids[digest] = outcome.id
            waiting.extend(outcome.children)
        return sorted(ids.values())

    async def ensure(self, digest: str, *, size: int | None, depth: int = 0) -> None:
        """Fetch a manifest with all that is below it, unless that is done or under way; `id_of` tells the outcome.

        Raises only what ends the whole run: PostgreSQL or S3 being away.
        """
        if digest in self._known or digest in self._outcomes:
            return
        task = self._fetching.get(digest)
        if task is None:
            self._progress.manifests_total += 1
            task = self._fetching[digest] = asyncio.create_task(self._one(digest, size=size, depth=depth))
            task.add_done_callback(lambda _: self._fetching.pop(digest, None))
        await asyncio.shield(task)

    async def _one(self, digest: str, *, size: int | None, depth: int) -> None:
        try:
            if self._progress.manifests_total > self._settings.max_manifests:
                raise NotStorable(
                    f"a run fetches at most {self._settings.max_manifests} manifests", reason="TooManyManifests"
                )
            self._outcomes[digest] = await self._fetch(Digest.parse(digest), size=size, depth=depth)
            self._progress.manifests_done += 1
        except (UpstreamError, NotStorable) as error:
            # Not the error itself: its traceback holds on to bodies, and there may be as many as manifests.
            self._outcomes[digest] = NotStorable(error.message, reason=error.reason)
        except ManifestUnsupported as error:
            self._outcomes[digest] = NotStorable(f"manifest {digest}: {error}", reason="ManifestUnsupported")
        except ManifestInvalid as error:
            self._outcomes[digest] = NotStorable(f"manifest {digest}: {error}")
        except asyncpg.PostgresError as error:
            self._outcomes[digest] = NotStorable(
                f"manifest {digest}: PostgreSQL refuses it ({type(error).__name__})", reason="InternalError"
            )

    async def _fetch(self, digest: Digest, *, size: int | None, depth: int) -> _Stored:
        limit = min(size or MAX_MANIFEST_SIZE, MAX_MANIFEST_SIZE)
        if not depth and limit < MAX_MANIFEST_SIZE:
            # An index states the sizes of its children, and its bytes were verified. The size of a root is what the answer to HEAD said,
            # which may be that of a compressed form: a hint to how much memory to take.
            try:
                return await self._fetch_within(digest, size=None, limit=limit, depth=depth)
            except TooLarge:
                limit = MAX_MANIFEST_SIZE
        return await self._fetch_within(digest, size=size if depth else None, limit=limit, depth=depth)

    async def _fetch_within(self, digest: Digest, *, size: int | None, limit: int, depth: int) -> _Stored:
        """`size` is what the manifest must have, `limit` what is read of it at most."""
        async with self._budget.hold(limit):
            manifest = await self._read(digest, size=size, limit=limit)
            if not manifest.is_index:
                return await self._image(manifest)
            # An index is stored before its children, so that its bytes are not held while these are fetched. It is in no version
            # unless all of them are.
            id_ = await self._store.add_manifest(ManifestRecord(manifest=manifest))
            children = manifest.children
            del manifest
        await self._children(children, depth=depth + 1)
        return _Stored(id_, tuple(str(child.digest) for child in children))

    async def _read(self, digest: Digest, *, size: int | None, limit: int) -> Manifest:
        fetched = await self._client.manifest(digest, limit=limit)
        if size and len(fetched.body) != size:
            raise UpstreamInvalid(
                f"manifest {digest} has {len(fetched.body)} bytes where {size} were promised", reason="SizeMismatch"
            )
        if len(fetched.body) < _PARSE_IN_THREAD:
            return parse(fetched.body, content_type=fetched.content_type, algorithm=digest.algorithm)
        return await asyncio.to_thread(
            parse, fetched.body, content_type=fetched.content_type, algorithm=digest.algorithm
        )

    async def _image(self, manifest: Manifest) -> _Stored:
        config = await self._blobs.ensure(manifest)
        platform, labels = config_platform(config) if config is not None else (None, {})
        record = ManifestRecord(
            manifest=with_labels(manifest, labels),
            os=platform.os or None if platform else None,
            architecture=platform.architecture or None if platform else None,
            variant=platform.variant if platform else None,
            labels=labels,
        )
        return _Stored(await self._store.add_manifest(record), ())

    async def _children(self, children: Sequence[Descriptor], *, depth: int) -> None:
        if depth > self._settings.max_depth:
            raise NotStorable(f"an index lists indexes more than {self._settings.max_depth} deep", reason="TooDeep")
        for child in children:
            if child.media_type not in MANIFEST_TYPES:
                raise NotStorable(
                    f"an index lists {child.digest}, which is no manifest but {child.media_type[:100]}",
                    reason="ManifestUnsupported",
                )
        self.know(await self._store.latest([str(child.digest) for child in children]))
        for first in range(0, len(children), _CHILDREN_AT_A_TIME):
            group = children[first : first + _CHILDREN_AT_A_TIME]
            results = await asyncio.gather(
                *(self.ensure(str(child.digest), size=child.size, depth=depth) for child in group),
                return_exceptions=True,
            )
            for result in results:
                if isinstance(result, BaseException):
                    raise result
        for child in children:
            outcome = self.id_of(str(child.digest))
            if isinstance(outcome, EntrepotError):
                raise NotStorable(f"child {child.digest}: {outcome.message}", reason=outcome.reason)
