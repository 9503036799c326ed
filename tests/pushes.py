"""A client that pushes, for tests: it follows the Locations it is given, as the specification asks of clients, and hides nothing."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import AsyncIterable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urljoin

import aiohttp
from yarl import URL

from entrepot.oci import media_types
from tests.contents import Image
from tests.services import Answer, Running

__all__ = ["Pusher", "digest_of", "document", "pusher"]

Body = bytes | AsyncIterable[bytes]


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of bytes, in any algorithm that hashlib knows."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def document(media_type: str = media_types.OCI_MANIFEST, **fields: Any) -> bytes:
    """The bytes of a manifest."""
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, **fields}).encode()


@dataclass(frozen=True)
class Pusher:
    """Requests to one name, with one token. Paths are relative to the name unless they begin with a slash or are whole addresses."""

    http: aiohttp.ClientSession
    url: str
    name: str
    headers: Mapping[str, str]

    async def ask(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, data: Body | None = None
    ) -> Answer:
        """Any request, exactly as written."""
        url = URL(urljoin(f"{self.url}/v2/{self.name}/", path), encoded=True)
        sent = {**self.headers, **(headers or {})}
        # aiohttp sends a file piece by piece.
        content = io.BytesIO(data) if isinstance(data, bytes) and data else data
        async with self.http.request(method, url, headers=sent, data=content, allow_redirects=False) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def status(self, method: str, path: str) -> int:
        """Only the status of a request."""
        return (await self.ask(method, path)).status

    async def begin(self, **query: str) -> str:
        """Open an upload; gives its Location."""
        got = await self.ask("POST", f"blobs/uploads/?{urlencode(query)}" if query else "blobs/uploads/")
        assert got.status == 202, (got.status, got.body)
        return str(got.headers["Location"])

    async def patch(self, location: str, data: Body, *, at: int | None = None, size: int | None = None) -> Answer:
        """A chunk; `at` is where it says that it begins, and without it there is no Content-Range."""
        headers = {"Content-Type": "application/octet-stream"}
        if at is not None:
            length = size if size is not None else len(data) if isinstance(data, bytes) else 0
            headers["Content-Range"] = f"{at}-{at + length - 1}"
        return await self.ask("PATCH", location, headers=headers, data=data)

    async def finish(self, location: str, digest: str, data: bytes = b"", *, at: int | None = None) -> Answer:
        """The PUT that ends an upload, with the last chunk if there is one."""
        headers = {"Content-Type": "application/octet-stream"}
        if at is not None:
            headers["Content-Range"] = f"{at}-{at + len(data) - 1}"
        joint = "&" if "?" in location else "?"
        return await self.ask("PUT", f"{location}{joint}{urlencode({'digest': digest})}", headers=headers, data=data)

    async def blob(self, data: bytes, *, algorithm: str = "sha256") -> Answer:
        """A blob in a single POST."""
        headers = {"Content-Type": "application/octet-stream"}
        query = urlencode({"digest": digest_of(data, algorithm)})
        return await self.ask("POST", f"blobs/uploads/?{query}", headers=headers, data=data)

    async def manifest(
        self, body: bytes, reference: str, *, media_type: str = media_types.OCI_MANIFEST, tags: Iterable[str] = ()
    ) -> Answer:
        """A manifest by tag or digest, with `?tag=` for each of `tags`."""
        query = urlencode([("tag", tag) for tag in tags])
        path = f"manifests/{reference}" + (f"?{query}" if query else "")
        return await self.ask("PUT", path, headers={"Content-Type": media_type}, data=body)

    async def image(self, image: Image, reference: str) -> Answer:
        """An image with its blobs; gives the answer to its manifest."""
        for blob in image.blobs:
            pushed = await self.blob(blob)
            assert pushed.status == 201, (pushed.status, pushed.body)
        return await self.manifest(image.body, reference)


async def pusher(
    running: Running,
    name: str = "demo/app",
    *actions: str,
    more: dict[str, tuple[str, ...]] | None = None,
    subject: str = "tester",
) -> Pusher:
    """A client with these rights on a name (all of them by default), and `more` on others."""
    headers = await running.granted(*actions, name=name, more=more, subject=subject)
    return Pusher(running.http, running.url, name, headers)
