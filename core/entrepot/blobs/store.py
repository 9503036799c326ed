"""The blob store: objects in one S3 bucket, through aiobotocore.

Who writes has recorded the key in PostgreSQL before (`db.content.begin_objects`), and points a blob at it afterwards; so nothing is ever
renamed, copied or listed here. Parts are sent while the next one fills, from one budget of bytes for the whole process. A multipart upload
becomes an object only when it is completed, which its writer does after it has verified size and digest: what was not verified is never
an object.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session

from entrepot.blobs.budget import ByteBudget
from entrepot.blobs.failures import ObjectMissing, translated
from entrepot.blobs.settings import BufferSettings
from entrepot.blobs.upload import Multipart, Upload, checksum, complete_parts
from entrepot.errors import StorageUnavailable
from entrepot.settings import S3Settings
from entrepot.splice import is_plain

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

__all__ = [
    "BlobStore",
    "BufferSettings",
    "Multipart",
    "ObjectMissing",
    "ObjectStream",
    "StoreObserver",
    "Upload",
    "open_store",
]

_MIB = 1024 * 1024
_DELETE_BATCH = 1000
"""S3: keys a request may name."""
_MISSING = frozenset({"NoSuchKey", "NotFound", "404"})


class StoreObserver(Protocol):
    """Who is told what S3 takes."""

    def storage(self, operation: str, seconds: float, error: str | None) -> None:
        """A call has ended, or has begun to give its body: PutObject, GetObject …; `error` is S3's code or the type of the exception."""
        ...


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
        # For the same reason bodies are not signed; and links are to have the newer form of signature, as requests have.
        s3={"addressing_style": settings.addressing, "payload_signing_enabled": False},
        signature_version="s3v4",
    )

    def connect(endpoint: str) -> Any:
        return session.create_client(
            "s3",
            endpoint_url=endpoint,
            region_name=settings.region,
            aws_access_key_id=settings.access_key_id or None,
            aws_secret_access_key=settings.secret_access_key or None,
            verify=settings.ca_file or None,
            config=config,
        )

    async with contextlib.AsyncExitStack() as stack:
        client = signer = await stack.enter_async_context(connect(settings.endpoint))
        if observer is not None:
            _observe(client, observer)
        if settings.public_endpoint:
            # A signature covers the host, so links for another one need a client of their own. It never makes a request.
            signer = await stack.enter_async_context(connect(settings.public_endpoint))
        yield BlobStore(client, settings.bucket, buffers or BufferSettings(), signer=signer)


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

    def __init__(self, client: S3Client, bucket: str, buffers: BufferSettings, *, signer: S3Client) -> None:
        self._client = client
        self._signer = signer
        self._bucket = bucket
        self.buffers = buffers
        self.budget = ByteBudget(buffers.budget)

    async def check(self) -> None:
        """Raise unless the bucket is there and ours to use."""
        with translated("the bucket"):
            await self._client.head_bucket(Bucket=self._bucket)

    async def ensure_bucket(self) -> None:
        """Make the bucket if it is absent."""
        try:
            await self.check()
        except ObjectMissing:
            with translated("the bucket"):
                await self._client.create_bucket(Bucket=self._bucket)

    async def put(self, key: str, data: bytes | bytearray | memoryview, *, sha256_hex: str | None = None) -> None:
        """Write an object in one request. S3 compares `sha256_hex` with what it received, where it is given and S3 knows how."""
        extra: dict[str, Any] = {}
        if sha256_hex is not None:
            extra["ChecksumSHA256"] = checksum(sha256_hex)
        with translated(key):
            await self._client.put_object(Bucket=self._bucket, Key=key, Body=io.BytesIO(data), **extra)

    async def complete(self, key: str, made: Multipart, *, size: int) -> None:
        """Make parts, which another process may have sent, an object of `size` bytes. It may be one already.

        Raises `ObjectMissing` if there are neither the parts nor the object, `PartsReplaced`, and `StorageUnavailable`.
        """
        try:
            await complete_parts(self._client, self._bucket, key, made=made)
        except ObjectMissing:
            # S3 does this once; who asked before may not have come to his own end.
            if await self.size(key) != size:
                raise

    async def presign(self, key: str, ttl: timedelta) -> str:
        """A link that lets anybody GET this object for a while. Made here, without asking S3."""
        with translated(key):
            return await self._signer.generate_presigned_url(
                "get_object", Params={"Bucket": self._bucket, "Key": key}, ExpiresIn=max(1, int(ttl.total_seconds()))
            )

    async def size(self, key: str) -> int | None:
        """Bytes of an object; None if there is none."""
        try:
            with translated(key):
                return (await self._client.head_object(Bucket=self._bucket, Key=key))["ContentLength"]
        except ObjectMissing:
            return None

    def multipart(
        self, key: str, *, size: int | None = None, on_open: Callable[[str], Awaitable[None]] | None = None,
        observe: Callable[[memoryview], None] | None = None, resume: Multipart | None = None, holder: str | None = None,
    ) -> Upload:  # fmt: skip
        """Write an object whose length is not known or large. `size`, if known, avoids buffers larger than that.

        What fits into one part is written by one plain request. Otherwise `on_open` is told S3's upload id before the first part is sent,
        and `observe` sees every part, in order and in a thread, while it is sent. `resume` goes on with an upload that has parts already.
        Buffers are taken in the name of `holder`, if there is one, who then does not get all of them.
        """
        return Upload(
            self._client, self._bucket, key, buffers=self.buffers, budget=self.budget, size=size, on_open=on_open, observe=observe,
            resume=resume, holder=holder,
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def read(self, key: str, start: int = 0, end: int | None = None) -> AsyncIterator[ObjectStream]:
        """Stream an object, or its bytes from `start` to `end` (inclusive, as in HTTP).

        Raises `ObjectMissing` before the first chunk; a stream that breaks off raises, it never just ends.
        """
        extra: dict[str, Any] = {}
        if start or end is not None:
            extra["Range"] = f"bytes={start}-{'' if end is None else end}"
        with translated(key):
            answer = await self._client.get_object(Bucket=self._bucket, Key=key, **extra)
        body = answer["Body"]
        try:
            yield ObjectStream(key, body, answer["ContentLength"])
        finally:
            # What was read to its end goes back to the pool by itself; what was not is closed.
            body.close()

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; one that is absent counts as removed."""
        for first in range(0, len(keys), _DELETE_BATCH):
            batch = keys[first : first + _DELETE_BATCH]
            with translated("objects"):
                answer = await self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
                )
            failed = [e for e in answer.get("Errors", []) if e.get("Code") not in _MISSING]
            if failed:
                raise StorageUnavailable(
                    f"S3 did not remove {len(failed)} objects: {failed[0].get('Code', 'no reason given')}"
                )

    async def abort_all(self, key: str) -> int:
        """Drop every multipart upload of a key, also one whose id was not written down; gives their number."""
        with translated(key):
            answer = await self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=key)
        found = [one["UploadId"] for one in answer.get("Uploads", []) if one.get("Key") == key and "UploadId" in one]
        for upload_id in found:
            await self.abort(key, upload_id)
        return len(found)

    async def abort(self, key: str, upload_id: str) -> None:
        """Drop a multipart upload that nobody will complete; one that is gone already counts as dropped."""
        with contextlib.suppress(ObjectMissing), translated(key):
            await self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)


class ObjectStream:
    """An object's bytes, in order, in chunks of a few hundred KiB at most. A stream that breaks off raises, it never just ends."""

    def __init__(self, key: str, body: Any, length: int) -> None:
        self.length = length
        self._key = key
        # aiohttp's response beneath botocore's body: the latter would hand out the same bytes, but through three more calls.
        self._response = body.raw_stream
        self._received = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with translated(self._key):
            chunk: bytes = await self._response.content.readany()
        self._received += len(chunk)
        if chunk:
            return chunk
        if self._received != self.length:
            raise StorageUnavailable(f"S3 broke off {self._key} after {self._received} of {self.length} bytes")
        raise StopAsyncIteration

    def take_rest(self) -> tuple[bytes, asyncio.BaseTransport] | None:
        """What has come but was not read, and the plain socket by which the remainder comes; nothing can be read here any more.

        None, and nothing is changed, where bytes have to be read: S3 speaks TLS, or has sent everything already.
        """
        connection = self._response.connection
        if connection is None or connection.transport is None or not is_plain(connection.transport):
            return None
        rest = []
        with translated(self._key):
            # Reading makes aiohttp go on with what its parser has held back, so it is read until there is none.
            while chunk := self._response.content.read_nowait():
                rest.append(chunk)
        if self._response.connection is None:  # that was the last of it, and the connection is in the pool again
            return b"".join(rest), connection.transport
        connection.protocol.pause_reading()
        return b"".join(rest), connection.transport
