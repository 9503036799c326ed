"""One run, from its row to its outcome: list, compare, download, commit.

What fails for one tag is that tag's failure. What fails for the upstream as a whole ends the run with outcome Failed, for the operator to
show and to try again. PostgreSQL or S3 being away for too long ends the process instead, without an outcome, for another attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import structlog

from entrepot.credentials import Credentials, CredentialsUnreadable, Keys, KeysInvalid, unseal
from entrepot.db import content, syncer
from entrepot.db.content import Cause, Change, Commit, LedgerEntry
from entrepot.db.pool import Connection, open_pool
from entrepot.db.syncer import ClaimedRun, RunEnd
from entrepot.errors import (
    CommitRefused,
    DatabaseUnavailable,
    EntrepotError,
    RepositoryGone,
    StorageUnavailable,
    UpstreamError,
)
from entrepot.oci.hosts import UrlInvalid, origin
from entrepot.settings import DatabaseSettings, S3Settings
from entrepot.upstream.client import Remote, UpstreamClient, open_client
from entrepot.upstream.settings import UpstreamSettings
from entrepot_syncer.blobs import Blobs
from entrepot_syncer.lease import RunOver, hold_lease
from entrepot_syncer.manifests import Manifests
from entrepot_syncer.outcome import Failures, contact_of, end_of_failed_run, end_of_run
from entrepot_syncer.patience import Database
from entrepot_syncer.progress import Progress
from entrepot_syncer.selection import Selection, select, work_through
from entrepot_syncer.settings import ProcessSettings, SyncerSettings
from entrepot_syncer.spec import RunSpec, SourceSpec, read_spec
from entrepot_syncer.store import RunStore, objects_owner, open_run_store

__all__ = ["Environment", "RunUnknown", "perform"]

_log = structlog.get_logger(__name__)
_LATEST_BATCH = 1000
"""Digests compared with the latest version in one query."""


class RunUnknown(EntrepotError):
    """There is no run of this id."""

    default_reason = "RunUnknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """All settings of the process."""

    database: DatabaseSettings
    s3: S3Settings
    upstream: UpstreamSettings
    syncer: SyncerSettings
    process: ProcessSettings


async def perform(run: UUID, environment: Environment) -> RunEnd | None:
    """Do a run and write its outcome; None if it was finished before.

    Raises:
        DatabaseUnavailable, StorageUnavailable, RunHeld: worth another attempt.
        RunUnknown, RunOver: never worth one.
    """
    settings = environment.syncer
    async with (
        hold_lease(run, database=environment.database, settings=settings) as lease,
        open_pool(environment.database, application="entrepot-syncer") as pool,
    ):
        database = Database(pool, outage=settings.outage)
        claimed = await database.run(lambda c: syncer.claim_run(c, run))
        if claimed is None:
            if await database.run(lambda c: syncer.run_is_finished(c, run)) is None:
                raise RunUnknown(f"there is no run {run}")
            return None
        progress = Progress(bytes_transferred=claimed.bytes_transferred)
        log = _log.bind(run=str(run), repository=f"{claimed.namespace}/{claimed.name}", attempt=claimed.attempt)
        keeper = asyncio.create_task(lease.keep(progress))
        attempt = _Run(claimed, database, environment=environment, progress=progress, log=log)
        work = asyncio.create_task(attempt.finish())
        try:
            await asyncio.wait({keeper, work}, return_when=asyncio.FIRST_COMPLETED)
            if keeper.done():
                # Whatever the work is doing, the run is not ours any more. Unless it is the work that ended it; the row's lock tells.
                try:
                    keeper.result()
                except RunOver:
                    if not attempt.is_ending:
                        raise
            return await work
        finally:
            keeper.cancel()
            work.cancel()
            await asyncio.gather(keeper, work, return_exceptions=True)


class _Run:
    """One attempt at a run."""

    def __init__(
        self, claimed: ClaimedRun, database: Database, *, environment: Environment, progress: Progress,
        log: structlog.typing.FilteringBoundLogger,
    ) -> None:  # fmt: skip
        self._claimed = claimed
        self._database = database
        self._environment = environment
        self._progress = progress
        self._log = log
        self._failures = Failures()
        self._may_have_ended = False
        """Whether an earlier try of the last transaction wrote the outcome; its COMMIT may have been done and its answer lost."""
        self.is_ending = False
        """Whether the outcome is being written, or is."""

    async def finish(self) -> RunEnd:
        """Sync, and write the outcome whatever it is. Raises RunOver where somebody else wrote one."""
        spec: RunSpec | None = None
        contact: tuple[str, str | None] | None = None
        try:
            if self._claimed.is_deleted:
                raise RepositoryGone("the repository was deleted")
            spec = read_spec(self._claimed.spec)
            end = await self._sync(spec.source)
            contact = contact_of(end)
        except (DatabaseUnavailable, StorageUnavailable, RunOver):
            raise
        except EntrepotError as error:
            end = end_of_failed_run(error)
            contact = (error.reason, end.message) if isinstance(error, UpstreamError) else None
            await self._database.run(lambda c: self._fail(c, end), transaction=True)
        except Exception as error:  # noqa: BLE001 # logged with its traceback, and shown as a defect
            self._log.exception("run failed by a defect")
            end = RunEnd(
                outcome="Failed",
                reason="InternalError",
                message=f"a defect of the syncer: {type(error).__name__}; see its log",
            )
            await self._database.run(lambda c: self._fail(c, end), transaction=True)
        if spec is not None and contact is not None:
            remote, (outcome, message) = spec.source.remote, contact
            await self._database.run(lambda c: syncer.record_contact(c, remote, outcome=outcome, message=message))
        self._log.info(
            "run finished", outcome=end.outcome, reason=end.reason, message=end.message, version=end.version, added=end.added,
            failed_tags=end.failed_tag_count, bytes_transferred=self._progress.bytes_transferred,
        )  # fmt: skip
        return end

    async def _end(self, connection: Connection, end: RunEnd, *, is_applied: bool = False) -> None:
        """Raises RunOver where somebody else ended the run."""
        self.is_ending = True
        if await syncer.finish_run(connection, self._claimed.id, end=end, progress=self._progress.snapshot()):
            self._may_have_ended = True
        elif not is_applied and not self._may_have_ended:
            raise self._over()

    async def _fail(self, connection: Connection, end: RunEnd) -> None:
        await syncer.abandon_objects(connection, objects_owner(self._claimed.id))
        await self._end(connection, end)

    def _over(self) -> RunOver:
        return RunOver(f"run {self._claimed.id} was ended by somebody else; nothing of it is committed")

    async def _sync(self, source: SourceSpec) -> RunEnd:
        remote = Remote(
            url=source.url,
            name=source.upstream_name,
            credentials=await self._credentials(source),
            insecure_skip_verify=source.insecure_skip_verify,
            limits=source.limits(),
        )
        self._log.info("run started", url=source.url, upstream=source.upstream_name)
        async with open_client(remote, self._environment.upstream) as client:
            selection = await select(client, source, failures=self._failures, progress=self._progress)
            async with open_run_store(
                self._database,
                self._environment.s3,
                repository=self._claimed.repository,
                run=self._claimed.id,
                origin=(str(client.origin), client.name),
                settings=self._environment.syncer,
            ) as store:
                if self._claimed.attempt > 1:
                    await store.clean_up()
                return await self._mirror(client, store, selection=selection, source=source)

    async def _credentials(self, source: SourceSpec) -> Credentials:
        sealed = await self._database.run(lambda c: syncer.credential(c, source.remote))
        if sealed is None:
            return Credentials()
        directory = self._environment.process.credentials_key_dir
        if directory is None:
            raise CredentialsUnreadable("the Remote has credentials, and ENTREPOT_CREDENTIALS_KEY_DIR is not set")
        try:
            keys = await asyncio.to_thread(Keys.load, directory)
            place = origin(source.url)
        except (KeysInvalid, UrlInvalid) as error:
            raise CredentialsUnreadable(str(error)) from error
        opened = unseal(keys, source.remote, origin=str(place), key_id=sealed.key_id, ciphertext=sealed.ciphertext)
        return opened.for_repository(place.authority, source.upstream_name)

    async def _mirror(
        self, client: UpstreamClient, store: RunStore, *, selection: Selection, source: SourceSpec
    ) -> RunEnd:
        settings = self._environment.syncer
        blobs = Blobs(client, store, settings=settings, progress=self._progress)
        manifests = Manifests(client, store, blobs, settings=settings, progress=self._progress)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(blobs.close)
            stack.push_async_callback(manifests.close)
            await self._download(store, manifests, selection=selection, workers=2 * source.download_concurrency)
            return await self._commit(store, manifests, selection)

    async def _download(self, store: RunStore, manifests: Manifests, *, selection: Selection, workers: int) -> None:
        roots = selection.roots
        known = await self._known(roots)
        manifests.know(known)
        shares = Counter([*selection.tags.values(), *selection.digests])
        self._progress.tags_done = self._failures.count + sum(shares[digest] for digest in known)
        new = [digest for digest in roots if digest not in known]
        if not new:
            return
        self._progress.phase = "Downloading"
        self._log.info("downloading", tags=selection.selected, manifests=len(new))

        async def fetch(digest: str) -> None:
            await manifests.ensure(digest, size=selection.sizes.get(digest))
            self._progress.tags_done += shares[digest]

        await work_through(new, fetch, workers=workers)

    async def _known(self, digests: Sequence[str]) -> dict[str, int]:
        known: dict[str, int] = {}
        for first in range(0, len(digests), _LATEST_BATCH):
            batch = digests[first : first + _LATEST_BATCH]
            known |= await self._database.run(
                lambda c, b=batch: content.latest_manifests(c, self._claimed.repository, digests=b)  # type: ignore[misc]
            )
        return known

    async def _commit(self, store: RunStore, manifests: Manifests, selection: Selection) -> RunEnd:
        """The new version and the run's outcome, in one transaction: neither is ever there without the other."""
        self._progress.phase = "Committing"
        tags: dict[str, int] = {}
        roots: set[str] = set()
        for name, digest in [*selection.tags.items(), *((digest, digest) for digest in selection.digests)]:
            id_ = manifests.id_of(digest)
            if isinstance(id_, EntrepotError):
                self._failures.add(name, id_)
                continue
            roots.add(digest)
            if name != digest:
                tags[name] = id_
        change = Change(tags=tags, add_manifests=manifests.closure(roots))

        async def work(connection: Connection) -> RunEnd:
            self.is_ending = True
            run_id = self._claimed.id
            commit: Commit | None = None
            is_ours = await syncer.lock_run(connection, run_id)
            is_applied = not is_ours and await syncer.run_is_applied(connection, run_id)
            if roots and not is_ours and not is_applied:
                # The operator gave this process up, and a newer run may have mirrored something newer.
                raise self._over()
            if roots:
                run = str(run_id)
                commit = await content.commit(
                    connection,
                    self._claimed.repository,
                    change=change,
                    cause=Cause("Sync", run),
                    ledger=LedgerEntry("SyncRun", run, self._claimed.spec_hash),
                )
            end = end_of_run(commit, self._failures, selected=selection.selected)
            await store.discard_leftovers(connection)
            await self._end(connection, end, is_applied=is_applied)
            return end

        try:
            return await self._database.run(work, transaction=True)
        except CommitRefused as refusal:
            self._log.warning("commit refused", reason=refusal.reason, message=refusal.message)
            raise
        except asyncpg.PostgresError as error:
            self._log.error("commit failed", sqlstate=error.sqlstate)
            raise
