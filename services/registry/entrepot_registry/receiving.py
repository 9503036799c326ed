"""Bytes on their way from a client to the place where they stay.

They are written once: what fits into one part is held in memory until its digest is known and then goes to PostgreSQL or, in one request,
to S3; what does not is sent in parts while more is received. Digests are made of the same bytes in the same pass. Only where the state of a
hash is not here, since another process received the first parts or since another algorithm is asked for at the end, the object is read again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

from cachetools import LRUCache

from entrepot.blobs.failures import TooManyParts
from entrepot.blobs.store import BlobStore, Multipart, ObjectMissing, Upload
from entrepot.db.content import INLINE_LIMIT
from entrepot.db.uploads import UploadState
from entrepot.errors import RegistryError
from entrepot.oci.digest import Digest, Hasher
from entrepot_registry.bodies import Body
from entrepot_registry.object_keys import KeyPool, LentKey

__all__ = ["Reception", "Stored", "SumCache", "Sums", "read_again", "receiving", "still_there", "verify"]

_INLINE_HASH = 256 * 1024
"""Bytes that are hashed by the event loop itself; more go to a thread."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Bytes that are where they stay: an object, or in memory for a row."""

    digest: Digest
    size: int
    key: str | None = None
    inline: bytes | None = None


class Sums:
    """The hashes of what was sent in parts, by algorithm; of one that is missing the state is not known here."""

    def __init__(self, *hashers: Hasher) -> None:
        self._hashers = {hasher.algorithm: hasher for hasher in hashers}

    def update(self, view: memoryview) -> None:
        """Called in a thread, for one part after the other."""
        for hasher in self._hashers.values():
            hasher.update(view)

    def copy(self) -> Sums:
        """The same, to go on with while these stay as they are."""
        return Sums(*(hasher.copy() for hasher in self._hashers.values()))

    async def digest(self, algorithm: str, rest: memoryview) -> Digest | None:
        """Of what was sent and the rest that was not."""
        hasher = self._hashers.get(algorithm)
        if hasher is None:
            return None
        whole = hasher.copy()
        if rest.nbytes <= _INLINE_HASH:
            whole.update(rest)
        else:
            await asyncio.to_thread(whole.update, rest)
        return whole.digest()


class Reception:
    """One request's bytes on top of what an upload has; from `receiving`."""

    def __init__(
        self, store: BlobStore, upload: Upload, *, state: UploadState, sums: Sums, key: str, lend: Callable[[], Awaitable[LentKey]]
    ) -> None:  # fmt: skip
        self._store = store
        self._upload = upload
        self._state = state
        self._sums = sums
        self._key = key
        self._lend = lend
        self.lent: list[LentKey] = []
        self.is_spent = False
        """The upload cannot go on: its parts have become an object."""

    @property
    def size(self) -> int:
        """Bytes of the upload, with those received so far."""
        return self._state.part_bytes + self._upload.written

    def keep(self) -> None:
        """Now a row points at what was written."""
        self._upload.keep_parts()
        for key in self.lent:
            key.is_kept = True

    async def take(self, body: Body, *, check: Callable[[], None]) -> None:
        """Receive the body, after what is left over from the requests before. `check` raises when it should stop."""
        if self._state.tail is not None:
            await self._upload.write(self._state.tail)
        elif self._state.tail_key is not None:
            async with self._store.read(self._state.tail_key) as chunks:
                async for chunk in chunks:
                    await self._upload.write(chunk)
        async for chunk in body:
            check()
            await self._upload.write(chunk)

    async def suspend(self) -> tuple[UploadState, Sums]:
        """Make durable what was received; gives what the upload's row is to say, and the hashes at the end of the parts."""
        made = await self._upload.settle()
        rest = self._upload.pending
        size = rest.nbytes
        digest = await self._sums.digest("sha256", rest)
        tail = bytes(rest) if 0 < size <= INLINE_LIMIT else None
        del rest
        sums = self._sums
        tail_key = await self._put_tail(is_all=made is None) if size > INLINE_LIMIT else None
        if made is not None and size:
            # Usually nothing follows. If something does, this part is sent again, longer.
            sums = self._sums.copy()
            made = await self._upload.settle(is_last=True)
        state = UploadState(
            offset=self.size, sha256=digest.hex if digest is not None else None, object_key=self._key if made is not None else None,
            multipart=made.upload_id if made is not None else None, part_etags=made.etags if made is not None else (),
            part_bytes=self.size - size, tail=tail, tail_key=tail_key,
        )  # fmt: skip
        return state, sums

    async def _put_tail(self, *, is_all: bool) -> str:
        """What is pending, as an object: the one that it is to be if nothing was sent before."""
        if is_all:
            self.lent[0].is_used = True
            await self._upload.complete()
            return self._key
        spare = await self._lend()
        self.lent.append(spare)
        spare.is_used = True
        await self._upload.put_pending(spare.name)
        return spare.name

    async def finish(self, digest: Digest, *, known: Digest | None) -> Stored:
        """Write what is not written yet, and make sure that it is what `digest` names; `known` is the digest if nothing was added.

        Raises RegistryError 400 DIGEST_INVALID; the upload is then as it was before, unless `is_spent`.
        """
        if not self._upload.is_multipart:
            return await self._finish_whole(digest)
        await self._upload.settle(is_last=True)
        actual = await self._sums.digest(digest.algorithm, memoryview(b""))
        if actual is None and known is not None and known.algorithm == digest.algorithm:
            actual = known
        if actual is not None:
            verify(actual, digest)
        self.is_spent = True
        await self._upload.complete()
        if actual is None:
            verify(await read_again(self._store, self._key, digest.algorithm), digest)
        return Stored(digest, self.size, key=self._key)

    async def _finish_whole(self, digest: Digest) -> Stored:
        whole = self._upload.pending
        size = whole.nbytes
        actual = await self._sums.digest(digest.algorithm, whole)
        verify(actual, digest)
        if size <= INLINE_LIMIT:
            return Stored(digest, size, inline=bytes(whole))
        self.lent[0].is_used = True
        await self._upload.complete(sha256_hex=digest.hex if digest.algorithm == "sha256" else None)
        return Stored(digest, size, key=self._key)


async def read_again(store: BlobStore, key: str, algorithm: str) -> Digest:
    """The digest of an object."""
    hasher = Hasher(algorithm)
    async with store.read(key) as chunks:
        async for chunk in chunks:
            hasher.update(chunk)
    return hasher.digest()


def verify(actual: Digest | None, digest: Digest) -> None:
    """Raises RegistryError 400 unless the bytes are what was named."""
    if actual != digest:
        raise RegistryError(
            400, "DIGEST_INVALID", "the bytes received have another digest than the one named",
            detail={"digest": str(digest), "received": str(actual)},
        )  # fmt: skip


@contextlib.asynccontextmanager
async def receiving(
    store: BlobStore, keys: KeyPool, *, state: UploadState, sums: Sums, owner: str, length: int | None, subject: str
) -> AsyncIterator[Reception]:  # fmt: skip
    """Receive bytes on top of `state`, into memory of the process's budget and from there to S3; `length` of them, if that is known.

    The memory is taken in the name of `subject`, which does not get all of it.

    What was written and not kept is given up at the end. Raises RegistryError 404 and 413, see `still_there`.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def lend() -> LentKey:
            return await stack.enter_async_context(keys.lend())

        has_tail = state.offset > state.part_bytes
        whole_parts = state.part_etags[:-1] if has_tail else state.part_etags
        resume = Multipart(state.multipart, whole_parts) if state.multipart is not None else None
        lent = [await lend()] if resume is None else []
        key = lent[0].name if lent else state.object_key or ""

        async def on_open(multipart: str) -> None:
            lent[0].is_used = True
            await keys.open_multipart(key, owner=owner, multipart=multipart)

        size = state.offset - state.part_bytes + length if length is not None else None
        upload = await stack.enter_async_context(
            store.multipart(key, size=size, on_open=on_open, observe=sums.update, resume=resume, holder=subject)
        )
        reception = Reception(store, upload, state=state, sums=sums, key=key, lend=lend)
        reception.lent = lent
        with still_there():
            yield reception


@contextlib.contextmanager
def still_there() -> Iterator[None]:
    """Raises RegistryError 404 where S3 does not have what an upload had, and 413 where it takes no more: trying again would not help."""
    try:
        yield
    except ObjectMissing as error:
        raise RegistryError(
            404, "BLOB_UPLOAD_UNKNOWN", "what was uploaded before is not there any more; begin again"
        ) from error
    except TooManyParts as error:
        raise RegistryError(
            413,
            "SIZE_INVALID",
            "the upload has as many parts as an object can have: send larger pieces, or a smaller blob",
        ) from error


class SumCache:
    """Hashes between the requests of an upload: in memory only, since their state cannot be written down, and only those used last."""

    def __init__(self, size: int) -> None:
        self._kept: LRUCache[str, tuple[int, Sums]] = LRUCache(size)

    def take(self, upload: str, state: UploadState, algorithm: str) -> Sums:
        """The hashes to go on with; empty if they are not here."""
        if not state.part_bytes:
            return Sums(Hasher(algorithm))
        at, sums = self._kept.get(upload, (-1, Sums()))
        return sums.copy() if at == state.part_bytes else Sums()

    def keep(self, upload: str, state: UploadState, sums: Sums) -> None:
        """Remember them for the next request, if the bytes that they cover are not all at hand then."""
        if state.part_bytes:
            self._kept[upload] = state.part_bytes, sums

    def drop(self, upload: str) -> None:
        """The upload has ended."""
        self._kept.pop(upload, None)
