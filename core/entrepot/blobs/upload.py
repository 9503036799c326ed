"""An object on its way to S3, in parts that are sent while the next one fills, out of one budget of bytes for the whole process."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from entrepot.blobs.budget import ByteBudget
from entrepot.blobs.failures import BuffersFull, TooManyParts, translated
from entrepot.blobs.settings import MAX_PARTS, BufferSettings
from entrepot.errors import StorageUnavailable

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

__all__ = ["Multipart", "Upload", "checksum", "complete_parts"]

_PATIENCE = 5
"""Seconds that parts on their way may take when their upload is given up."""
_SMALL = 64 * 1024
"""Bytes that need no room in the budget: an image's config does not wait for layers."""


@dataclass(frozen=True, slots=True)
class Multipart:
    """A multipart upload that goes on: S3's id of it, and the entity tags of the parts it has."""

    upload_id: str
    etags: tuple[str, ...]


class Upload:
    """An object on its way: `async with`, `write` every chunk, then `complete`. Left without `complete`, nothing remains of it.

    Who wants to go on later, maybe in another process, calls `settle` and `keep_parts` in place of `complete`: what was sent stays at S3,
    and `pending` is what was not.

    Memory: the part that fills and `parts_in_flight` parts on the wire, all of them out of the process's budget.
    """

    def __init__(
        self, client: S3Client, bucket: str, key: str, *, buffers: BufferSettings, budget: ByteBudget, size: int | None,
        on_open: Callable[[str], Awaitable[None]] | None, observe: Callable[[memoryview], None] | None = None, resume: Multipart | None = None,
        holder: str | None = None,
    ) -> None:  # fmt: skip
        self._client = client
        self._target: dict[str, str] = {"Bucket": bucket, "Key": key}
        self._key = key
        self._buffers = buffers
        self._budget = budget
        self._holder = holder
        self._expected = size
        self._on_open = on_open
        self._observe = observe
        self._observing: asyncio.Task[None] | None = None
        # BytesIO, because aiohttp sends a file piece by piece with flow control, and bytes in one go.
        self._buffer: io.BytesIO | None = None
        self._reserved = 0
        self._written = 0
        self._upload_id = resume.upload_id if resume is not None else None
        self._parts = dict(enumerate(resume.etags, 1)) if resume is not None else {}
        self._number = len(self._parts)
        self._sending: set[asyncio.Task[None]] = set()
        self._stays = resume is not None

    @property
    def written(self) -> int:
        """Bytes so far."""
        return self._written

    @property
    def is_multipart(self) -> bool:
        """Whether more than one part was needed, so far."""
        return self._upload_id is not None

    @property
    def pending(self) -> memoryview:
        """The bytes that were not sent. To be let go of before anything else is done with this."""
        return self._buffer.getbuffer() if self._buffer is not None else memoryview(b"")

    async def __aenter__(self) -> Upload:
        return self

    async def write(self, chunk: bytes | memoryview) -> None:
        """Take a chunk; waits while the budget is used up or too many parts are on their way."""
        view = memoryview(chunk)
        while view.nbytes:
            buffer = self._buffer if self._buffer is not None else await self._new_part()
            taken = buffer.write(view[: self._reserved - buffer.tell()])
            self._written += taken
            view = view[taken:]
            if buffer.tell() == self._reserved and (view.nbytes or self._written != self._expected):
                await self._flush(buffer)

    async def settle(self, *, is_last: bool = False) -> Multipart | None:
        """Wait until what was sent has arrived and was observed; what is pending is sent before if it makes a part, or is the last.

        None if there are no parts: then everything is pending.
        """
        if self._upload_id is None:
            return None
        if self._buffer is not None and (is_last or self._buffer.tell() >= self._buffers.smallest_part(self._number)):
            await self._flush(self._buffer)
        while self._sending:
            await self._wait_for_a_part()
        return Multipart(self._upload_id, tuple(self._parts[number] for number in sorted(self._parts)))

    def keep_parts(self) -> None:
        """From now on the parts stay at S3 when this is left."""
        self._stays = True

    async def put_pending(self, key: str) -> None:
        """Write what is pending as an object of its own; it stays pending all the same."""
        body = self._buffer if self._buffer is not None else io.BytesIO()
        body.seek(0)
        with translated(key):
            await self._client.put_object(Bucket=self._target["Bucket"], Key=key, Body=body)
        body.seek(0, io.SEEK_END)

    async def complete(self, *, sha256_hex: str | None = None) -> None:
        """Make it an object. Raises `StorageUnavailable`, after which nothing remains of it.

        `sha256_hex`, where it is known, is compared by S3 if the object is written in one request.
        """
        made = await self.settle(is_last=True)
        if made is None:
            await self._put_whole(sha256_hex)
        else:
            await complete_parts(self._client, self._target["Bucket"], self._key, made=made)
        self._stays = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        under_way = {*self._sending, *([self._observing] if self._observing is not None else [])}
        if under_way:
            # A part that arrives after the end would outlive it, or replace the one of the same number that somebody else sends then.
            await asyncio.wait(under_way, timeout=_PATIENCE)
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        self._drop_buffer()
        if self._upload_id is not None and not self._stays:
            # Where S3 is away the keeper does this later: the row with the upload id is still there.
            with contextlib.suppress(StorageUnavailable), translated(self._key):
                await self._client.abort_multipart_upload(**self._target, UploadId=self._upload_id)  # type: ignore[arg-type]

    def _part_size(self) -> int:
        size = self._buffers.size_of_part(self._number)
        if self._expected is not None:
            size = min(size, max(self._expected - self._written, 1))
        return size

    async def _new_part(self) -> io.BytesIO:
        while len(self._sending) >= self._buffers.parts_in_flight:
            await self._wait_for_a_part()
        size = self._part_size()
        try:
            async with asyncio.timeout(self._buffers.patience.total_seconds()):
                await self._budget.take(_room(size), holder=self._holder)
        except TimeoutError as error:
            raise BuffersFull("there was no room in the buffers for long") from error
        self._reserved = size
        self._buffer = io.BytesIO()
        return self._buffer

    async def _flush(self, buffer: io.BytesIO) -> None:
        """Send the part that has filled, in the background."""
        if self._number == MAX_PARTS:
            raise TooManyParts(f"an object has at most {MAX_PARTS} parts: raise {self._buffers.prefix}PART_SIZE")
        if self._upload_id is None:
            with translated(self._key):
                answer = await self._client.create_multipart_upload(**self._target)  # type: ignore[arg-type]
            self._upload_id = answer["UploadId"]
            if self._on_open is not None:
                await self._on_open(self._upload_id)
        self._number += 1
        reserved = self._reserved
        self._buffer, self._reserved = None, 0
        if self._observe is not None:
            self._observing = asyncio.create_task(self._show(buffer, after=self._observing))
        task = asyncio.create_task(self._send(self._number, buffer, reserved=reserved, observed=self._observing))
        self._sending.add(task)

    async def _show(self, buffer: io.BytesIO, *, after: asyncio.Task[None] | None) -> None:
        """Let the observer see a part, after those before it."""
        if after is not None:
            await after
        if self._observe is not None:
            await asyncio.to_thread(self._observe, buffer.getbuffer())

    async def _send(
        self, number: int, buffer: io.BytesIO, *, reserved: int, observed: asyncio.Task[None] | None
    ) -> None:
        buffer.seek(0)
        try:
            with translated(self._key):
                answer = await self._client.upload_part(
                    **self._target,  # type: ignore[arg-type]
                    UploadId=self._upload_id or "",
                    PartNumber=number,
                    Body=buffer,
                )
            self._parts[number] = answer["ETag"]
            if observed is not None:
                await observed
        finally:
            # A thread may still be looking at it, when this is cancelled.
            with contextlib.suppress(BufferError):
                buffer.close()
            self._budget.give(_room(reserved), holder=self._holder)

    async def _wait_for_a_part(self) -> None:
        done, self._sending = await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _put_whole(self, sha256_hex: str | None) -> None:
        body = self._buffer if self._buffer is not None else io.BytesIO()
        body.seek(0)
        extra: dict[str, Any] = {"ChecksumSHA256": checksum(sha256_hex)} if sha256_hex is not None else {}
        with translated(self._key):
            await self._client.put_object(**self._target, Body=body, **extra)  # type: ignore[arg-type]
        self._drop_buffer()

    def _drop_buffer(self) -> None:
        if self._buffer is not None:
            self._budget.give(_room(self._reserved), holder=self._holder)
            self._buffer, self._reserved = None, 0


async def complete_parts(client: S3Client, bucket: str, key: str, *, made: Multipart) -> None:
    """Make parts an object. Raises `ObjectMissing` if there is no such upload (any more), and `StorageUnavailable`."""
    parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(made.etags, 1)]
    with translated(key):
        await client.complete_multipart_upload(
            Bucket=bucket,
            Key=key,
            UploadId=made.upload_id,
            MultipartUpload={"Parts": parts},  # type: ignore[typeddict-item]
        )


def _room(size: int) -> int:
    """What a buffer of this size takes of the budget."""
    return size if size > _SMALL else 0


def checksum(hexadecimal: str) -> str:
    """A digest as S3 writes it."""
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode("ascii")
