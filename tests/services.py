"""Registry and token service, listening on loopback in the test's own event loop, with content put in through the parts' own functions."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from yarl import URL

from entrepot import logs
from entrepot.blobs.store import BlobStore, BufferSettings, open_store
from entrepot.db.pool import Connection, connect
from entrepot.settings import DatabaseSettings, S3Settings
from entrepot.web.service import WebService
from entrepot.web.settings import WebSettings
from entrepot.web.traces import TracesSettings
from entrepot_registry.app import open_registry
from entrepot_registry.settings import RegistrySettings
from entrepot_token.app import open_token_service
from entrepot_token.settings import TokenSettings
from tests.conftest import Database
from tests.servers import free_port

SERVICE = "entrepot-test"
WEB = WebSettings(
    host="127.0.0.1",
    drain_delay=timedelta(0),
    drain_timeout=timedelta(seconds=5),
    readiness_interval=timedelta(milliseconds=50),
)


def write_key(directory: Path, name: str = "key-1", *, kind: str = "ec") -> Any:
    """A new private key in a directory of signing keys."""
    directory.mkdir(exist_ok=True)
    key: Any = ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else rsa.generate_private_key(65537, 2048)
    (directory / f"{name}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key


@dataclass
class Answer:
    """An answer, read whole."""

    status: int
    headers: Any
    body: bytes

    def json(self) -> Any:
        import json

        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error answer, which must have the specification's form."""
        assert self.headers["Content-Type"] == "application/json", self.headers
        [error] = self.json()["errors"]
        assert set(error) <= {"code", "message", "detail"}
        assert error["message"]
        return str(error["code"])


async def signed(
    owner: Connection, keys: Path, wanted: Mapping[str, tuple[str, ...]], *, subject: str = "tester"
) -> dict[str, str]:
    """A token for actions by name, as a header, signed with the token service's own key; no actions: asked for, and refused."""
    rows = await owner.fetch("select name, uuid from place where name = any ($1::text[])", list(wanted))
    key = load_pem_private_key((keys / "key-1.pem").read_bytes(), password=None)
    now = int(time.time())
    claims = {
        "iss": SERVICE, "aud": SERVICE, "sub": subject, "iat": now, "nbf": now, "exp": now + 300, "jti": secrets.token_hex(8),
        "access": [{"type": "repository", "name": n, "actions": list(a)} for n, a in wanted.items() if a],
        "entrepot": {
            "distributions": {row["name"]: str(row["uuid"]) for row in rows},
            "refused": [n for n, a in wanted.items() if not a],
        },
    }  # fmt: skip
    token = jwt.encode(claims, key, algorithm="ES256", headers={"kid": "key-1"})  # type: ignore[arg-type]
    return {"Authorization": f"Bearer {token}"}


@dataclass
class Running:
    """Both services and a client."""

    registry: WebService
    token: WebService
    owner: Connection
    store: BlobStore
    http: aiohttp.ClientSession
    keys: Path
    tokens: dict[tuple[str, ...], str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://localhost:{self.registry.port}"

    async def request(self, method: str, path: str, *, headers: dict[str, str] | None = None, **more: Any) -> Answer:
        """A request exactly as written, without a token."""
        url = URL(self.url + path, encoded=True)
        async with self.http.request(method, url, headers=headers, allow_redirects=False, **more) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def ask_token(self, *scopes: str, through: str = "registry", **headers: str) -> Answer:
        """A token request, by default through the registry."""
        port = self.registry.port if through == "registry" else self.token.port
        url = URL(f"http://localhost:{port}/token").with_query(
            [("service", SERVICE), *(("scope", scope) for scope in scopes)]
        )
        async with self.http.get(url, headers=headers) as answer:
            return Answer(answer.status, answer.headers, await answer.read())

    async def bearer(self, name: str = "demo/app") -> dict[str, str]:
        """An anonymous token to pull from a name, as a header."""
        scope = f"repository:{name}:pull"
        if (scope,) not in self.tokens:
            self.tokens[scope,] = (await self.ask_token(scope)).json()["token"]
        return {"Authorization": f"Bearer {self.tokens[scope,]}"}

    async def granted(
        self,
        *actions: str,
        name: str = "demo/app",
        subject: str = "tester",
        more: dict[str, tuple[str, ...]] | None = None,
    ) -> dict[str, str]:
        """A token signed with the token service's own key, as a header: these actions on `name`, and on further names."""
        wanted = {name: actions or ("pull", "push", "delete"), **(more or {})}
        return await signed(self.owner, self.keys, wanted, subject=subject)

    async def get(
        self, path: str, *, method: str = "GET", name: str = "demo/app", headers: dict[str, str] | None = None
    ) -> Answer:
        """A request with an anonymous token for `name`."""
        return await self.request(method, path, headers={**await self.bearer(name), **(headers or {})})

    async def head(self, path: str, **more: Any) -> Answer:
        """HEAD with an anonymous token."""
        return await self.get(path, method="HEAD", **more)

    async def metric(self, pattern: str, *, of: WebService | None = None) -> float:
        """The sum of the samples whose name and labels match."""
        async with self.http.get(f"http://127.0.0.1:{(of or self.registry).metrics_port}/metrics") as answer:
            text = await answer.text()
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(pattern, line))

    async def statements(self) -> float:
        """Statements the registry has sent to PostgreSQL."""
        return await self.metric(r"entrepot_registry_database_statements_total\{")

    async def storage_calls(self, operation: str = "") -> float:
        """Calls of S3 that the registry has made: all, or those of an operation (PutObject)."""
        return await self.metric(rf'entrepot_registry_storage_call_seconds_count\{{operation="{operation}')


@asynccontextmanager
async def running(
    database: Database, s3: S3Settings, keys: Path, *, web: WebSettings = WEB, registry_database: DatabaseSettings | None = None,
    token: dict[str, Any] | None = None, buffers: BufferSettings | None = None, tracing: TracesSettings | None = None,
    **registry: Any,
) -> AsyncIterator[Running]:  # fmt: skip
    """Both services over a database and a bucket; further arguments are settings of the registry."""
    if not keys.exists():
        write_key(keys)
    # As the processes do: the library's own default renders tracebacks by reading source files, in the event loop.
    logs.configure("info")
    async with AsyncExitStack() as stack:
        owner = await connect(database.settings(), application="test")
        stack.push_async_callback(owner.close)
        store = await stack.enter_async_context(open_store(s3))
        token_settings = TokenSettings(
            port=0, metrics_port=0, signing_key_dir=keys, service_id=SERVICE,
            keys_interval=timedelta(milliseconds=50), key_delay=timedelta(milliseconds=200), lookup_timeout=timedelta(seconds=2), **(token or {}),
        )  # fmt: skip
        issuer = await stack.enter_async_context(
            open_token_service(token_settings, web_settings=web, database=database.settings("token"))
        )
        port = free_port()
        settings = RegistrySettings(
            port=port, metrics_port=0, service_id=SERVICE, token_url=f"http://127.0.0.1:{issuer.port}",
            external_urls=(f"http://localhost:{port}", "https://registry.example.test"), lookup_timeout=timedelta(seconds=2),
        )  # fmt: skip
        settings = dataclasses.replace(settings, **registry)
        service = await stack.enter_async_context(
            open_registry(
                settings,
                web_settings=web,
                database=registry_database or database.settings("registry"),
                s3=s3,
                buffers=buffers,
                tracing=tracing,
            )
        )
        http = await stack.enter_async_context(aiohttp.ClientSession(auto_decompress=False))
        made = Running(service, issuer, owner, store, http, keys)
        await wait_ready(made.http, service)
        yield made


async def wait_ready(
    http: aiohttp.ClientSession, *services: WebService, status: int = 200, seconds: float = 20
) -> dict[str, Any]:
    """Wait until /readyz answers with a status; gives its body."""
    async with asyncio.timeout(seconds):
        while True:
            bodies = []
            for service in services:
                async with http.get(f"http://127.0.0.1:{service.metrics_port}/readyz") as answer:
                    if answer.status == status:
                        bodies.append(await answer.json())
            if len(bodies) == len(services):
                return dict(bodies[-1])
            await asyncio.sleep(0.02)


async def wait_problem(http: aiohttp.ClientSession, service: WebService, check: str, *, seconds: float = 20) -> str:
    """Wait until /readyz names a failing check, while the service stays ready all the same; gives what it says."""
    async with asyncio.timeout(seconds):
        while True:
            body = await wait_ready(http, service)
            if check in body.get("problems", {}):
                return str(body["problems"][check])
            await asyncio.sleep(0.02)


async def until(condition: Callable[[], Awaitable[bool]], *, seconds: float = 20) -> None:
    """Wait for a condition, with a deadline."""
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - it is another process's, or a metric
            await asyncio.sleep(0.02)


async def raw(port: int, data: bytes | Sequence[bytes], *, seconds: float = 5) -> bytes:
    """What a server answers to bytes, until it closes or nothing comes for `seconds`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        for piece in [data] if isinstance(data, bytes) else data:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(seconds):
            while chunk := await reader.read(65536):
                answer += chunk
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return answer
