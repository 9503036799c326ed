"""The blob store: objects in one S3 bucket, through aiobotocore.

Who writes has recorded the key in PostgreSQL before (`db.content.begin_objects`), and points a blob at it afterwards; so nothing is ever
renamed, copied or listed here. Parts are sent while the next one fills, from one budget of bytes for the whole process. A multipart upload
becomes an object only when it is completed, which its writer does after it has verified size and digest: what was not verified is never
an object.

S3's own limits: 10,000 parts, each but the last at least 5 MiB. Part sizes double every thousand parts, which is enough for 280 GB with
the default settings and keeps the memory of ordinary layers at a few parts.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore.exceptions import BotoCoreError, ClientError

from entrepot.blobs.budget import ByteBudget
from entrepot.errors import StorageUnavailable
from entrepot.settings import S3Settings, SettingInvalid, Settings

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

__all__ = ["BlobStore", "BufferSettings", "ObjectMissing", "StoreObserver", "Upload", "open_store"]

_MIB = 1024 * 1024
_READ_CHUNK = 256 * 1024
_DELETE_BATCH = 1000
"""S3: keys a request may name."""
_PARTS_PER_SIZE = 1000
_MAX_PARTS = 10_000
_MISSING = frozenset({"NoSuchKey", "NotFound", "404"})


class StoreObserver(Protocol):
    """Who is told what S3 takes."""

    def storage(self, operation: str, seconds: float, error: str | None) -> None:
        """A call has ended, or has begun to give its body: PutObject, GetObject …; `error` is S3's code or the type of the exception."""
        ...


class ObjectMissing(StorageUnavailable):
    """There is no object of this key, although a row says so."""

    default_reason = "ObjectMissing"


@dataclass(frozen=True, kw_only=True)
class BufferSettings(Settings):
    """How much memory the bytes under way may take."""

    prefix: ClassVar[str] = "ENTREPOT_BUFFER_"

    budget: int = 48 * _MIB
    """Bytes of all buffers of a process together."""

    part_size: int = 8 * _MIB
    """Bytes of the first parts of a multipart upload; at least 5 MiB, which is S3's own limit."""

    parts_in_flight: int = 2
    """Parts of one upload that are sent while the next one fills."""

    def __post_init__(self) -> None:
        if self.part_size < 5 * _MIB:
            raise SettingInvalid(f"{self.prefix}PART_SIZE must be at least {5 * _MIB} (5 MiB), not {self.part_size}")
        if self.budget < 2 * self.part_size:
            raise SettingInvalid(
                f"{self.prefix}BUDGET must be at least two parts, {2 * self.part_size}, not {self.budget}"
            )
        if self.parts_in_flight < 1:
            raise SettingInvalid(f"{self.prefix}PARTS_IN_FLIGHT must be at least 1")


@contextlib.asynccontextmanager
async def open_store(
    settings: S3Settings, buffers: BufferSettings | None = None, *, observer: StoreObserver | None = None
) -> AsyncIterator[BlobStore]:
    """The store, for the life of a process. It makes no request by itself, so a process starts while S3 is away."""
    session = await asyncio.to_thread(_prepare_session)
    config = AioConfig(
        max_pool_connections=settings.max_connections,
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "max_attempts": 3},
        # Bytes are verified by their digest; botocore's own checksums would read every body once more.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": settings.addressing},
    )
    context = session.create_client(
        "s3",
        endpoint_url=settings.endpoint,
        region_name=settings.region,
        aws_access_key_id=settings.access_key_id or None,
        aws_secret_access_key=settings.secret_access_key or None,
        verify=settings.ca_file or None,
        config=config,
    )
    async with context as client:
        if observer is not None:
            _observe(client, observer)
        yield BlobStore(client, settings.bucket, buffers or BufferSettings())


def _observe(client: S3Client, observer: StoreObserver) -> None:
    """Tell of every call, in the context of who made it: botocore's own events, so that no call can be forgotten."""

    def begin(context: dict[str, Any], **_: Any) -> None:
        context["entrepot_started"] = time.perf_counter()

    def end(event_name: str, context: dict[str, Any], **more: Any) -> None:
        started = context.pop("entrepot_started", None)
        if started is None:
            return
        error = type(more["exception"]).__name__ if "exception" in more else None
        if error is None and more["http_response"].status_code >= 300:
            error = str(more["parsed"].get("Error", {}).get("Code") or more["http_response"].status_code)
        observer.storage(event_name.rpartition(".")[2], time.perf_counter() - started, error)

    client.meta.events.register("before-call.s3", begin)
    client.meta.events.register("after-call.s3", end)
    client.meta.events.register("after-call-error.s3", end)


def _prepare_session() -> AioSession:
    """Read botocore's descriptions of S3 from disk, which blocks: to be called in a thread."""
    session = get_session()
    loader = session.get_component("data_loader")
    for name in ("_retry", "endpoints", "partitions", "sdk-default-configuration"):
        loader.load_data_with_path(name)
    for kind in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("s3", kind, api_version=None)  # as botocore calls it: the cache compares arguments
    # Its own configuration (and through it ~/.aws) is read lazily otherwise, by the event loop.
    session.get_config_variable("ca_bundle")
    return session


class BlobStore:
    """Objects by key. Everything raises `StorageUnavailable` where S3 does not do as it is asked."""

    def __init__(self, client: S3Client, bucket: str, buffers: BufferSettings) -> None:
        self._client = client
        self._bucket = bucket
        self._buffers = buffers
        self.budget = ByteBudget(buffers.budget)

    async def check(self) -> None:
        """Raise unless the bucket is there and ours to use."""
        with _translated("the bucket"):
            await self._client.head_bucket(Bucket=self._bucket)

    async def ensure_bucket(self) -> None:
        """Make the bucket if it is absent."""
        try:
            await self.check()
        except ObjectMissing:
            with _translated("the bucket"):
                await self._client.create_bucket(Bucket=self._bucket)

    async def put(self, key: str, data: bytes | bytearray | memoryview, *, sha256_hex: str | None = None) -> None:
        """Write an object in one request. S3 compares `sha256_hex` with what it received, where it is given and S3 knows how."""
        extra: dict[str, Any] = {}
        if sha256_hex is not None:
            extra["ChecksumSHA256"] = _base64(sha256_hex)
        with _translated(key):
            await self._client.put_object(Bucket=self._bucket, Key=key, Body=io.BytesIO(data), **extra)

    def multipart(
        self, key: str, *, size: int | None = None, on_open: Callable[[str], Awaitable[None]] | None = None
    ) -> Upload:
        """Write an object whose length is not known or large. `size`, if known, avoids buffers larger than that.

        What fits into one part is written by one plain request. Otherwise `on_open` is told S3's upload id before the first part is sent.
        """
        return Upload(
            self._client, self._bucket, key, buffers=self._buffers, budget=self.budget, size=size, on_open=on_open
        )

    @contextlib.asynccontextmanager
    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        """Stream an object, or its bytes from `start` to `end` (inclusive, as in HTTP), in chunks of up to 256 KiB.

        Raises `ObjectMissing` before the first chunk; a stream that breaks off raises, it never just ends.
        """
        extra: dict[str, Any] = {}
        if start or end is not None:
            extra["Range"] = f"bytes={start}-{'' if end is None else end}"
        with _translated(key):
            answer = await self._client.get_object(Bucket=self._bucket, Key=key, **extra)
        body = answer["Body"]
        try:
            yield _chunks(key, body, answer["ContentLength"])
        finally:
            # What was read to its end goes back to the pool by itself; what was not is closed.
            body.close()

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; one that is absent counts as removed."""
        for first in range(0, len(keys), _DELETE_BATCH):
            batch = keys[first : first + _DELETE_BATCH]
            with _translated("objects"):
                answer = await self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
                )
            failed = [e for e in answer.get("Errors", []) if e.get("Code") not in _MISSING]
            if failed:
                raise StorageUnavailable(
                    f"S3 did not remove {len(failed)} objects: {failed[0].get('Code', 'no reason given')}"
                )

    async def abort(self, key: str, upload_id: str) -> None:
        """Drop a multipart upload that nobody will complete; one that is gone already counts as dropped."""
        with contextlib.suppress(ObjectMissing), _translated(key):
            await self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)


class Upload:
    """An object on its way: `async with`, `write` every chunk, then `complete`. Left without `complete`, nothing remains of it.

    Memory: the part that fills and `parts_in_flight` parts on the wire, all of them out of the process's budget.
    """

    def __init__(
        self, client: S3Client, bucket: str, key: str, *, buffers: BufferSettings, budget: ByteBudget, size: int | None,
        on_open: Callable[[str], Awaitable[None]] | None,
    ) -> None:  # fmt: skip
        self._client = client
        self._target: dict[str, str] = {"Bucket": bucket, "Key": key}
        self._key = key
        self._buffers = buffers
        self._budget = budget
        self._expected = size
        self._on_open = on_open
        # BytesIO, because aiohttp sends a file piece by piece with flow control, and bytes in one go.
        self._buffer: io.BytesIO | None = None
        self._reserved = 0
        self._written = 0
        self._upload_id: str | None = None
        self._parts: dict[int, str] = {}
        self._number = 0
        self._sending: set[asyncio.Task[None]] = set()
        self._completed = False

    @property
    def written(self) -> int:
        """Bytes so far."""
        return self._written

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

    async def complete(self) -> None:
        """Make it an object. Raises `StorageUnavailable`, after which nothing remains of it."""
        if self._upload_id is None:
            await self._put_whole()
        else:
            if self._buffer is not None:
                await self._flush(self._buffer)
            while self._sending:
                await self._wait_for_a_part()
            parts = [{"PartNumber": number, "ETag": self._parts[number]} for number in sorted(self._parts)]
            with _translated(self._key):
                await self._client.complete_multipart_upload(
                    **self._target,  # type: ignore[arg-type]
                    UploadId=self._upload_id,
                    MultipartUpload={"Parts": parts},  # type: ignore[typeddict-item]
                )
        self._completed = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        self._drop_buffer()
        if self._upload_id is not None and not self._completed:
            # Where S3 is away the keeper does this later: the row with the upload id is still there.
            with contextlib.suppress(StorageUnavailable), _translated(self._key):
                await self._client.abort_multipart_upload(**self._target, UploadId=self._upload_id)  # type: ignore[arg-type]

    def _part_size(self) -> int:
        grown = self._buffers.part_size << (self._number // _PARTS_PER_SIZE)
        size = min(grown, max(self._buffers.part_size, self._budget.total // 2))
        if self._expected is not None:
            size = min(size, max(self._expected - self._written, 1))
        return size

    async def _new_part(self) -> io.BytesIO:
        while len(self._sending) >= self._buffers.parts_in_flight:
            await self._wait_for_a_part()
        size = self._part_size()
        await self._budget.take(size)
        self._reserved = size
        self._buffer = io.BytesIO()
        return self._buffer

    async def _flush(self, buffer: io.BytesIO) -> None:
        """Send the part that has filled, in the background."""
        if self._number == _MAX_PARTS:
            raise StorageUnavailable(f"an object has at most {_MAX_PARTS} parts: raise {self._buffers.prefix}PART_SIZE")
        if self._upload_id is None:
            with _translated(self._key):
                answer = await self._client.create_multipart_upload(**self._target)  # type: ignore[arg-type]
            self._upload_id = answer["UploadId"]
            if self._on_open is not None:
                await self._on_open(self._upload_id)
        self._number += 1
        reserved = self._reserved
        self._buffer, self._reserved = None, 0
        task = asyncio.create_task(self._send(self._number, buffer, reserved=reserved))
        self._sending.add(task)

    async def _send(self, number: int, buffer: io.BytesIO, *, reserved: int) -> None:
        buffer.seek(0)
        try:
            with _translated(self._key):
                answer = await self._client.upload_part(
                    **self._target,  # type: ignore[arg-type]
                    UploadId=self._upload_id or "",
                    PartNumber=number,
                    Body=buffer,
                )
            self._parts[number] = answer["ETag"]
        finally:
            buffer.close()
            self._budget.give(reserved)

    async def _wait_for_a_part(self) -> None:
        done, self._sending = await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _put_whole(self) -> None:
        body = self._buffer if self._buffer is not None else io.BytesIO()
        body.seek(0)
        with _translated(self._key):
            await self._client.put_object(**self._target, Body=body)  # type: ignore[arg-type]
        self._drop_buffer()

    def _drop_buffer(self) -> None:
        if self._buffer is not None:
            self._budget.give(self._reserved)
            self._buffer, self._reserved = None, 0


async def _chunks(key: str, body: Any, length: int) -> AsyncIterator[bytes]:
    """aiohttp's stream beneath botocore's body: the latter would hand out what is there byte-exact, but through three more calls."""
    content = body.raw_stream.content
    received = 0
    with _translated(key):
        while chunk := await content.readany():
            received += len(chunk)
            if len(chunk) <= _READ_CHUNK:
                yield chunk
                continue
            for first in range(0, len(chunk), _READ_CHUNK):
                yield chunk[first : first + _READ_CHUNK]
    if received != length:
        raise StorageUnavailable(f"S3 broke off {key} after {received} of {length} bytes")


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "")) or "no code given"
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code in _MISSING or code == "NoSuchUpload":
            raise ObjectMissing(f"S3 does not have {what} ({code})") from error
        raise StorageUnavailable(f"S3 refused {what}: {code} ({status})") from error
    except (BotoCoreError, aiohttp.ClientError, OSError, TimeoutError) as error:
        raise StorageUnavailable(f"S3 does not answer for {what}: {type(error).__name__}") from error


def _base64(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode("ascii")
