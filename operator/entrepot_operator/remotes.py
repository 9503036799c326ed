"""Remotes: what their specs say must make sense, and their credentials must lie ready, sealed, for the runs that need them.

The operator speaks to no registry. Whether one answers is known from the runs that did; their findings are in PostgreSQL.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from entrepot.content.durations import DurationInvalid, format_duration, parse_duration
from entrepot.credentials import seal
from entrepot.db.operator import Contact
from entrepot.errors import Failed, Stalled
from entrepot.oci.hosts import Origin, UrlInvalid, origin
from entrepot_operator.conditions import Result, rfc3339
from entrepot_operator.context import Context, is_deleted
from entrepot_operator.kinds import REMOTE, Key, Object, uid_of
from entrepot_operator.secrets import read_credentials
from entrepot_operator.settings import RemoteDefaults
from entrepot_operator.supported import check_supported

__all__ = ["Remotes", "Upstream", "accept", "check"]

_UNREACHABLE: Final = frozenset({"Unreachable", "UpstreamUnreachable"})
"""Findings that say that nothing answered; any other was an answer, and concerns one repository."""
_LOOK_AGAIN: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A Remote's spec, checked and with what applies where it is silent."""

    url: str
    origin: Origin
    insecure_skip_verify: bool
    download_concurrency: int
    max_retries: int
    connect_timeout: str
    read_timeout: str


def check(remote: Object, defaults: RemoteDefaults) -> Upstream:
    """What a Remote's spec says. Raises Stalled where it makes no sense, or asks for what is not supported yet."""
    spec = remote["spec"]
    check_supported(REMOTE, spec)
    url = spec["url"]
    try:
        found = origin(url)
    except UrlInvalid as error:
        raise Stalled(f"spec.url: {error}", reason="InvalidSpec") from None
    parts = urlsplit(url)
    if parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise Stalled(
            "spec.url: it must end after host and port; a repository's name belongs into upstreamName",
            reason="InvalidSpec",
        )
    tls = spec.get("tls") or {}
    if tls and found.scheme != "https":
        raise Stalled("spec.tls: it applies to an https:// url only", reason="InvalidSpec")
    timeouts = spec.get("timeouts") or {}
    return Upstream(
        url=url,
        origin=found,
        insecure_skip_verify=bool(tls.get("insecureSkipVerify", False)),
        download_concurrency=spec.get("downloadConcurrency", defaults.download_concurrency),
        max_retries=spec.get("maxRetries", defaults.max_retries),
        connect_timeout=_duration("spec.timeouts.connect", timeouts.get("connect"), defaults.connect_timeout),
        read_timeout=_duration("spec.timeouts.read", timeouts.get("read"), defaults.read_timeout),
    )


def _duration(field: str, value: str | None, default: timedelta) -> str:
    if value is None:
        return format_duration(default)
    try:
        return format_duration(parse_duration(value))
    except DurationInvalid as error:
        raise Stalled(f"{field}: {error}", reason="InvalidSpec") from None


async def accept(context: Context, remote: Object, *, upstream: str | None = None) -> Contact:
    """Check a Remote, and that its Secrets serve, for a repository there or for any; put it and its credentials where runs find them."""
    checked = check(remote, context.remote_defaults)
    uid = uid_of(remote)
    credentials = await read_credentials(
        context.api, remote, origin=checked.origin, upstream=upstream, look_again=context.tuning.secret_interval
    )
    sealed = seal(context.keys, uid, origin=str(checked.origin), credentials=credentials) if credentials else None
    metadata = remote["metadata"]
    return await context.db.put_remote(
        uid, namespace=metadata["namespace"], name=metadata["name"], url=checked.url, credential=sealed
    )


class Remotes:
    """The reconciler of Remotes."""

    kind = REMOTE

    async def reconcile(self, context: Context, body: Object, status: dict[str, Any]) -> Result | None:
        """See `context.Reconciler`."""
        if is_deleted(body):
            return None
        status["uuid"] = body["metadata"]["uid"]
        contact = await accept(context, body)
        if contact.contact_at is None:
            status.pop("lastContactTime", None)
            return Result(reason="Accepted", message="the spec is valid; no Repository has spoken to the registry yet")
        if contact.contact_outcome in _UNREACHABLE:
            raise Failed(
                contact.contact_message or "the registry did not answer", reason="Unreachable", retry_after=_LOOK_AGAIN
            )
        status["lastContactTime"] = rfc3339(contact.contact_at)
        return Result(reason="Reachable", message="the registry answered")

    async def gone(self, context: Context, key: Key) -> None:
        """Its credentials go with it; what was mirrored from it stays."""
        await context.db.delete_remote(key.namespace, key.name)
