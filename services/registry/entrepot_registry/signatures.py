"""The signature extension: atomic container signatures, kept beside a manifest of a repository and versioned like it.

Clients use it because the base endpoint says `X-Registry-Supports-Signatures` (containers/image, signature-protocols.md). A signature is judged by its form alone: whether it is by the right key,
and what it signs, is for the one who pulls to find out, and never for the place that it comes from.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from aiohttp import web

from entrepot.blobs.budget import ByteBudget
from entrepot.db.content import sign_manifest
from entrepot.db.manifests import find_signatures
from entrepot.db.pool import Pool
from entrepot.errors import CommitRefused, RegistryError
from entrepot.oci.digest import Digest
from entrepot.oci.errors import excerpt
from entrepot.web.calls import Call
from entrepot_registry.access import Guard
from entrepot_registry.documents import read_document
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.routes import Route
from entrepot_registry.settings import RegistrySettings
from entrepot_registry.statements import Statement
from entrepot_registry.writing import Targets, refused_write, writable_place

__all__ = ["Signatures"]

# The digest of what is signed, and something random to tell signatures apart.
_NAME = re.compile(r"(sha256:[0-9a-f]{64})@[0-9a-f]{32}")
_VERSION = 2
_ATOMIC = "atomic"


class _Signature(msgspec.Struct, frozen=True, rename="camel"):
    """`content` is base64 in the JSON."""

    schema_version: int
    type: str
    name: Annotated[str, msgspec.Meta(max_length=200)]
    content: bytes


_decoder = msgspec.json.Decoder(_Signature)


class Signatures:
    """The endpoint `/extensions/v2/<name>/signatures/<digest>`."""

    def __init__(
        self, pool: Pool, guard: Guard, targets: Targets, *, settings: RegistrySettings, metrics: RegistryMetrics
    ) -> None:
        self._guard = guard
        self._targets = targets
        self._settings = settings
        self._budget = ByteBudget(settings.signature_size * 8)
        self._find = Statement(pool, "find_signatures", timeout=settings.lookup_timeout, metrics=metrics)
        self._sign = Statement(pool, "sign_manifest", timeout=settings.commit_timeout, metrics=metrics)

    async def answer(self, call: Call, route: Route) -> web.Response:
        """Raises RegistryError, GrammarError and `DatabaseUnavailable`."""
        return await (self._put if call.method == "PUT" else self._get)(call, route.name or "", route.digest)

    async def _get(self, call: Call, name: str, digest: Digest) -> web.Response:
        """An empty list also where there is no such manifest: clients ask for every one that they pull, and take 404 for a failure."""
        grant = await self._guard.identify(call, name=name)
        page = await self._find.run(
            lambda c: find_signatures(
                c, name, digest=str(digest), grace=self._settings.pull_grace, count=self._settings.signatures_maximum
            )
        )
        self._guard.admit(call, grant, name, page.place)
        found = [_Signature(_VERSION, _ATOMIC, signature.name, signature.content) for signature in page.found]
        headers = {"Content-Type": "application/json"}
        return web.Response(body=msgspec.json.encode({"signatures": found}), headers=headers)

    async def _put(self, call: Call, name: str, digest: Digest) -> web.Response:
        place = await writable_place(call, name, guard=self._guard, targets=self._targets)
        settings = self._settings
        async with read_document(
            call, limit=settings.signature_size, budget=self._budget, timeout=settings.manifest_timeout
        ) as body:
            given = _parse(body, digest)
            try:
                outcome, version = await self._sign.run(
                    lambda c: sign_manifest(
                        c, place.repository, manifest=str(digest), name=given.name, digest=str(Digest.of(given.content)),
                        content=given.content, limit=settings.signatures_maximum,
                    )
                )  # fmt: skip
            except CommitRefused as error:
                raise refused_write(error, name) from error
        if outcome == "Unknown":
            raise RegistryError(404, "MANIFEST_UNKNOWN", "this repository has no such manifest")
        if outcome == "TooMany":
            message = f"a manifest has at most {settings.signatures_maximum} signatures here"
            raise RegistryError(400, "UNSUPPORTED", message)
        return web.Response(status=201, headers={"Entrepot-Version": str(version)})


def _parse(body: bytes, digest: Digest) -> _Signature:
    try:
        given = _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _invalid(f"it cannot be read: {excerpt(str(error), 200)}") from error
    if (given.schema_version, given.type) != (_VERSION, _ATOMIC):
        raise _invalid(f"schemaVersion is {_VERSION} and type {_ATOMIC}")
    name = _NAME.fullmatch(given.name)
    if name is None:
        raise _invalid("its name is sha256:<digest of the manifest>@<32 hexadecimal digits>")
    if name[1] != str(digest):
        raise _invalid(f"its name is about {name[1]}, and not about {digest}")
    if not given.content:
        raise _invalid("it is empty")
    return given


def _invalid(why: str) -> RegistryError:
    return RegistryError(400, "MANIFEST_INVALID", f"this is no atomic signature of the manifest: {why}")
