"""Pushing a blob: in one request, or as an upload session that any process goes on with.

What a session's row says is durable before the answer that tells it. A request that writes holds the row's lease, so two at once do not
mix; a lease ends with its request, or by itself when the process is killed. A session is known only under the name and to the subject
that began it. A digest that a client names gives access to nothing: a blob that is stored already is received and verified all the same.

A digest that does not match is 400, and the session stays as it was before the request; only where the bytes had to be read again to find
out, it ends.
"""

from __future__ import annotations

import contextlib
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from urllib.parse import parse_qsl

from aiohttp import web

from entrepot.blobs.failures import PartsReplaced
from entrepot.blobs.store import BlobStore, Multipart
from entrepot.db import uploads as db
from entrepot.db.pool import Pool
from entrepot.db.uploads import FoundUpload, UploadQuery, UploadState
from entrepot.errors import CommitRefused, RegistryError
from entrepot.oci.digest import Digest
from entrepot.oci.ranges import parse_upload_range
from entrepot.oci.reference import parse_name
from entrepot.web.calls import Call
from entrepot_registry.access import Guard
from entrepot_registry.bodies import Body
from entrepot_registry.lookups import Batcher
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.object_keys import KeyPool
from entrepot_registry.receiving import Stored, SumCache, read_again, receiving, still_there, verify
from entrepot_registry.routes import Endpoint, Route
from entrepot_registry.sessions import Lease, Session, busy, told, unknown_upload
from entrepot_registry.settings import RegistrySettings
from entrepot_registry.statements import Statement, Statements
from entrepot_registry.writing import Targets, WritablePlace, admit_writer, refused_write, writable_place

__all__ = ["Uploads"]

_MAX_FIELDS = 16
_EMPTY = UploadState()


class Uploads:
    """The endpoints `blobs/uploads/` and `blobs/uploads/<id>`. `async with` opens its lookups."""

    def __init__(
        self, pool: Pool, store: BlobStore, guard: Guard, targets: Targets, *, settings: RegistrySettings, metrics: RegistryMetrics
    ) -> None:  # fmt: skip
        self._store = store
        self._guard = guard
        self._targets = targets
        self._settings = settings
        self._metrics = metrics
        self._statements = Statements(pool, timeout=settings.lookup_timeout, metrics=metrics)
        self._keys = KeyPool(self._statements, batch=settings.upload_keys)
        self._storing = Statement(pool, "store_pushed_blob", timeout=settings.commit_timeout, metrics=metrics)
        self._mounting = Statement(pool, "mount_blob", timeout=settings.commit_timeout, metrics=metrics)
        self._sums = SumCache(settings.upload_hashes)
        self._receiving: Counter[str] = Counter()
        self._lookups: Batcher[UploadQuery, FoundUpload] = Batcher(
            pool, "find_uploads", db.find_uploads, settings=settings, metrics=metrics
        )

    async def __aenter__(self) -> Uploads:
        await self._lookups.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._lookups.__aexit__()

    async def answer(self, call: Call, route: Route) -> web.StreamResponse:
        """Raises RegistryError, GrammarError, `DatabaseUnavailable` and `StorageUnavailable`."""
        name = route.name or ""
        query = _query(call)
        if route.endpoint is Endpoint.UPLOADS:
            return await self._begin(call, name, query)
        digest = _digest(query) if call.method == "PUT" else None
        place, found = await self._find(call, name, route.reference)
        if found.state is None:
            raise unknown_upload()
        upload = Session(name, route.reference, place)
        if call.method == "GET":
            return told(204, upload, found.state.offset)
        if call.method == "DELETE":
            return await self._cancel(upload)
        if digest is None:
            return await self._append(call, upload, found)
        return await self._finish(call, upload, found, digest)

    async def _find(self, call: Call, name: str, upload: str) -> tuple[WritablePlace, FoundUpload]:
        grant = await self._guard.identify(call, name=name, action="push")
        found = await self._lookups.ask(UploadQuery(name, upload[:64], grant.subject))
        return admit_writer(call, name, grant, found.target, guard=self._guard), found

    # POST

    async def _begin(self, call: Call, name: str, query: dict[str, str]) -> web.Response:
        digest = _digest(query) if "digest" in query else None
        mount = Digest.parse(query["mount"]) if "mount" in query else None
        source = parse_name(query["from"]) if "from" in query else None
        if "digest-algorithm" in query:
            Digest.of(b"", query["digest-algorithm"])
        place = await writable_place(
            call, name, guard=self._guard, targets=self._targets, mount_from=source if mount is not None else None
        )
        if mount is not None and await self._mount(place, mount, source):
            return _created(name, mount)
        upload = Session(name, str(uuid.uuid4()), place)
        if digest is not None:
            return await self._push(call, upload, digest, is_session=False)
        await self._statements.run(
            "begin_upload",
            lambda connection: db.begin_upload(
                connection, upload=upload.id, repository=place.repository, subject=place.grant.subject
            ),
        )
        return told(202, upload, 0)

    async def _mount(self, place: WritablePlace, digest: Digest, source: str | None) -> bool:
        readable = {name: entry[0] for name, entry in place.grant.names.items() if "pull" in entry[1]}
        return await self._mounting.run(
            lambda connection: db.mount_blob(
                connection, place.repository, digest=str(digest), source=source, readable=readable,
                namespaces=place.grant.readable, grace=self._settings.pull_grace,
            )
        )  # fmt: skip

    # PATCH

    async def _append(self, call: Call, upload: Session, found: FoundUpload) -> web.Response:
        expected = self._check_range(call, upload, found)
        subject = upload.place.grant.subject
        with self._admitted(subject):
            async with self._leased(upload, found) as lease:
                state = lease.state
                body = self._body(call, state, expected)
                sums = self._sums.take(upload.id, state, "sha256")
                async with receiving(
                    self._store, self._keys, state=state, sums=sums, owner=f"upload/{upload.id}", length=body.length,
                    subject=subject,
                ) as reception:  # fmt: skip
                    await reception.take(body, check=lease.check)
                    _check_length(body, expected)
                    if not body.received:
                        return told(202, upload, state.offset)
                    new, sums = await reception.suspend()
                    await lease.save(new)
                    reception.keep()
                self._sums.keep(upload.id, new, sums)
                return told(202, upload, new.offset)

    # PUT

    async def _finish(self, call: Call, upload: Session, found: FoundUpload, digest: Digest) -> web.Response:
        expected = self._check_range(call, upload, found)
        state = found.state or _EMPTY
        body = self._body(call, state, expected)
        if body.length == 0 and not state.part_bytes and digest.algorithm == "sha256":
            if found.is_busy:
                raise busy(upload, state.offset)
            return await self._point(upload, state, digest)
        if (
            state == _EMPTY
            and not found.is_busy
            and body.length is not None
            and body.length <= self._store.buffers.part_size
        ):
            return await self._push(call, upload, digest, is_session=True)
        if body.length == 0 and state.part_bytes:
            async with self._leased(upload, found) as lease:
                return await self._complete(upload, lease, body, digest)
        with self._admitted(upload.place.grant.subject):
            async with self._leased(upload, found) as lease:
                return await self._conclude(upload, lease, body, digest, expected=expected)

    async def _conclude(
        self, upload: Session, lease: Lease, body: Body, digest: Digest, *, expected: int | None
    ) -> web.Response:
        state = lease.state
        sums = self._sums.take(upload.id, state, digest.algorithm)
        async with receiving(
            self._store, self._keys, state=state, sums=sums, owner=f"upload/{upload.id}", length=body.length,
            subject=upload.place.grant.subject,
        ) as reception:  # fmt: skip
            await reception.take(body, check=lease.check)
            _check_length(body, expected)
            known = Digest("sha256", state.sha256) if state.sha256 is not None and not body.received else None
            try:
                stored = await reception.finish(digest, known=known)
            except RegistryError as error:
                if reception.is_spent and error.code == "DIGEST_INVALID":
                    await self._end(upload)
                raise
            lease.check()
            await self._store_blob(upload, stored, is_session=True)
            lease.is_over = True
            reception.keep()
        return _created(upload.name, digest)

    async def _complete(self, upload: Session, lease: Lease, body: Body, digest: Digest) -> web.Response:
        """Nothing follows: the parts become the object, with the tail as the last of them."""
        state = lease.state
        is_known = state.sha256 is not None and digest.algorithm == "sha256"
        if is_known:
            verify(Digest("sha256", state.sha256 or ""), digest)
        key = state.object_key or ""
        with still_there():
            try:
                await self._store.complete(key, Multipart(state.multipart or "", state.part_etags), size=state.offset)
            except PartsReplaced:
                # A request that came to nothing had begun to send what follows, in place of the tail.
                return await self._conclude(upload, lease, body, digest, expected=None)
            if not is_known:
                actual = await read_again(self._store, key, digest.algorithm)
                if actual != digest:
                    await self._end(upload)
                verify(actual, digest)
        await self._store_blob(upload, Stored(digest, state.offset, key=key), is_session=True)
        lease.is_over = True
        return _created(upload.name, digest)

    async def _point(self, upload: Session, state: UploadState, digest: Digest) -> web.Response:
        """Everything is where it stays already, and its digest is known."""
        verify(Digest("sha256", state.sha256) if state.sha256 else Digest.of(b""), digest)
        inline = None if state.tail_key is not None else state.tail or b""
        await self._store_blob(upload, Stored(digest, state.offset, key=state.tail_key, inline=inline), is_session=True)
        return _created(upload.name, digest)

    async def _push(self, call: Call, upload: Session, digest: Digest, *, is_session: bool) -> web.Response:
        """The whole blob in this request, without a lease: whoever stores first ends the session, if there is one."""
        body = self._body(call, _EMPTY, None)
        subject = upload.place.grant.subject
        with self._admitted(subject):
            sums = self._sums.take(upload.id, _EMPTY, digest.algorithm)
            # What has no session stays the process's: the keeper ends what belongs to a session that is not there.
            owner = f"upload/{upload.id}" if is_session else self._keys.owner
            async with receiving(
                self._store, self._keys, state=_EMPTY, sums=sums, owner=owner, length=body.length, subject=subject,
            ) as reception:  # fmt: skip
                await reception.take(body, check=_nothing)
                stored = await reception.finish(digest, known=None)
                await self._store_blob(upload, stored, is_session=is_session)
                reception.keep()
        return _created(upload.name, digest)

    async def _store_blob(self, upload: Session, stored: Stored, *, is_session: bool) -> None:
        try:
            await self._storing.run(
                lambda connection: db.store_pushed_blob(
                    connection, upload.place.repository, digest=str(stored.digest), size=stored.size, key=stored.key, inline=stored.inline,
                    upload=upload.id if is_session else None,
                )
            )  # fmt: skip
        except CommitRefused as error:
            raise refused_write(error, upload.name) from error
        self._sums.drop(upload.id)

    # DELETE

    async def _cancel(self, upload: Session) -> web.Response:
        if not await self._end(upload):
            raise unknown_upload()
        return web.Response(status=204)

    async def _end(self, upload: Session) -> bool:
        self._sums.drop(upload.id)
        place = upload.place
        return await self._statements.run(
            "cancel_upload",
            lambda connection: db.cancel_upload(
                connection, upload=upload.id, repository=place.repository, subject=place.grant.subject
            ),
        )

    # What they share

    def _body(self, call: Call, state: UploadState, expected: int | None) -> Body:
        limit = max(0, self._settings.max_blob_size - state.offset)
        patience = self._settings.upload_timeout.total_seconds()
        body = Body(
            call, limit=limit, patience=patience, pace=self._settings.upload_pace,
            is_awaited=lambda: self._store.budget.is_short,
        )  # fmt: skip
        if expected is not None and body.length is not None and body.length != expected:
            raise _wrong_length(expected)
        return body

    @staticmethod
    def _check_range(call: Call, upload: Session, found: FoundUpload) -> int | None:
        """The length that Content-Range claims for the body. Raises RegistryError 416 if it begins elsewhere than the upload ends."""
        value = call.request.headers.get("Content-Range")
        if value is None:
            return None
        part = parse_upload_range(value)
        offset = found.state.offset if found.state is not None else 0
        if part.start != offset:
            raise RegistryError(
                416, "RANGE_INVALID", f"the upload has {offset} bytes; the next ones begin there",
                headers=upload.headers(offset),
            )  # fmt: skip
        return part.length

    @contextlib.contextmanager
    def _admitted(self, subject: str) -> Iterator[None]:
        """One of the uploads that a process bears at a time, and of those that it bears of one subject."""
        if self._receiving.total() >= self._settings.max_uploads:
            raise _too_many("too many uploads at once; try again")
        if self._receiving[subject] >= self._settings.uploads_per_subject:
            raise _too_many("you have too many uploads at once; try again when some of them have ended")
        self._receiving[subject] += 1
        self._metrics.uploads.inc()
        try:
            yield
        finally:
            self._receiving[subject] -= 1
            if not self._receiving[subject]:
                del self._receiving[subject]
            self._metrics.uploads.dec()

    @contextlib.asynccontextmanager
    async def _leased(self, upload: Session, found: FoundUpload) -> AsyncIterator[Lease]:
        offset = found.state.offset if found.state is not None else 0
        if found.is_busy:
            raise busy(upload, offset)
        lease = Lease(self._statements, upload, self._settings.upload_lease)
        state = await lease.claim()
        if state is None or state.offset != offset:
            # Another request was quicker.
            await lease.release()
            raise busy(upload, offset)
        async with lease:
            yield lease


def _query(call: Call) -> dict[str, str]:
    """The parameters, each once. Raises RegistryError for more than anybody needs."""
    try:
        pairs = parse_qsl(call.query, keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise RegistryError(400, "UNSUPPORTED", "the query has too many parameters") from error
    return dict(pairs)


def _digest(query: dict[str, str]) -> Digest:
    if "digest" not in query:
        raise RegistryError(400, "DIGEST_INVALID", "the parameter digest is missing: it names what was uploaded")
    return Digest.parse(query["digest"])


def _created(name: str, digest: Digest) -> web.Response:
    headers = {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": str(digest)}
    return web.Response(status=201, headers=headers)


def _check_length(body: Body, expected: int | None) -> None:
    if expected is not None and body.received != expected:
        raise _wrong_length(expected)


def _wrong_length(expected: int) -> RegistryError:
    return RegistryError(400, "SIZE_INVALID", f"the Content-Range says {expected} bytes, the body has others")


def _too_many(message: str) -> RegistryError:
    return RegistryError(429, "TOOMANYREQUESTS", message, headers={"Retry-After": "1"})


def _nothing() -> None:
    """Nobody can take away what has no lease."""
