"""To whom a client certificate is shown, and where certificates need not be trusted: at the Remote's own origin, and nowhere else."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from entrepot.credentials import Credentials
from entrepot.errors import UpstreamUnreachable
from entrepot.upstream.client import Remote, open_client
from entrepot.upstream.settings import UpstreamSettings
from entrepot.upstream.transport import Limits

SETTINGS = UpstreamSettings(allow_loopback=True)


def self_signed(name: str) -> tuple[str, str]:
    """A certificate for `name` that is its own authority, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


Answer = Callable[[web.Request], web.Response]


@asynccontextmanager
async def serving(directory: Path, name: str, answer: Answer, *, clients: str = "") -> AsyncIterator[tuple[str, str]]:
    """An https server of its own certificate, asking for those that `clients` signed; gives URL and certificate."""
    certificate, key = self_signed("localhost")
    path = directory / f"{name}.pem"
    path.write_text(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    if clients:
        context.load_verify_locations(cadata=clients)
        context.verify_mode = ssl.CERT_OPTIONAL

    async def handle(request: web.BaseRequest) -> web.Response:
        assert isinstance(request, web.Request)
        return answer(request)

    application = web.Application()
    application.router.add_get("/{path:.*}", handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield f"https://localhost:{runner.addresses[0][1]}", certificate
    finally:
        await runner.cleanup()


async def tags(remote: Remote) -> list[str]:
    async with open_client(remote, SETTINGS) as client:
        return [name async for page in client.tags() for name in page]


@pytest.mark.parametrize("trusted", [False, True])
async def test_neither_the_certificate_nor_the_leave_goes_to_where_a_redirect_leads(
    tmp_path: Path, trusted: bool
) -> None:
    shown: dict[str, bool] = {}
    own, key = self_signed("client")

    def note(name: str, request: web.Request) -> None:
        assert request.transport is not None
        shown[name] = bool(request.transport.get_extra_info("peercert"))

    def elsewhere(request: web.Request) -> web.Response:
        note("elsewhere", request)
        return web.json_response({"tags": ["v1"]})

    async with serving(tmp_path, "elsewhere", elsewhere, clients=own) as (target, authority):

        def home(request: web.Request) -> web.Response:
            note("home", request)
            return web.Response(status=307, headers={"Location": f"{target}/list"})

        async with serving(tmp_path, "home", home, clients=own) as (url, _):
            remote = Remote(
                url=url,
                name="app/web",
                credentials=Credentials(ca=authority if trusted else "", client_cert=own, client_key=key),
                insecure_skip_verify=True,
                limits=Limits(max_retries=0),
            )
            if trusted:
                assert await tags(remote) == ["v1"]
                assert shown == {"home": True, "elsewhere": False}
            else:
                with pytest.raises(UpstreamUnreachable, match="certificate is not trusted"):
                    await tags(remote)
                assert shown == {"home": True}
