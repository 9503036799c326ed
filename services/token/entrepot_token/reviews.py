"""The cluster's word: whose a token is (TokenReview), and whether somebody holds a right (SubjectAccessReview).

Answers are kept for a short while, and what is being asked is asked once. An API server that is away is never taken for a no: the client is
told to try again. What needs no review, pulling what is public, goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import structlog
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config
from prometheus_client import Counter

from entrepot.errors import Failed
from entrepot.web.remembered import Remembered
from entrepot_token.identity import AUTHENTICATED, Subject
from entrepot_token.rights import Question
from entrepot_token.settings import TokenSettings

__all__ = ["Cluster", "KubernetesUnavailable", "open_cluster"]

_GROUP: Final = "entrepot.dev"
_OWN: Final = "entrepot:"
"""How the names begin that we give ourselves."""
_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")

_log = structlog.get_logger("reviews")


class KubernetesUnavailable(Failed):
    """The API server does not answer, or refuses to review."""

    default_reason = "KubernetesUnavailable"


class _User(msgspec.Struct):
    username: str = ""
    uid: str = ""
    groups: list[str] = []
    extra: dict[str, list[str]] = {}


class _Status(msgspec.Struct):
    authenticated: bool = False
    audiences: list[str] = []
    user: _User = msgspec.field(default_factory=_User)
    allowed: bool = False


class _Review(msgspec.Struct):
    status: _Status


@dataclass(frozen=True, slots=True)
class _Found:
    subject: Subject | None


class Cluster:
    """The API server, as TokenSource and as Reviewer."""

    def __init__(self, client: ApiClient, settings: TokenSettings, *, reviews: Counter) -> None:
        self._client = client
        self._audience = settings.cluster_audience or settings.service_id
        self._slots = asyncio.Semaphore(settings.review_concurrency)
        self._timeout = settings.review_timeout.total_seconds()
        self._reviews = reviews
        self._key = secrets.token_bytes(32)
        seconds = settings.review_cache.total_seconds()
        self._tokens: Remembered[bytes, _Found] = Remembered(
            size=settings.review_cache_size, lifetime=lambda _found: seconds
        )
        self._rights: Remembered[tuple[Subject, Question], bool] = Remembered(
            size=settings.review_cache_size, lifetime=lambda _allowed: seconds
        )

    async def identify(self, token: str) -> Subject | None:
        """See TokenSource."""
        key = hashlib.blake2b(token.encode(), key=self._key, digest_size=32).digest()
        return (await self._tokens.get(key, lambda: self._review_token(token))).subject

    async def allows(self, subject: Subject, question: Question) -> bool:
        """See Reviewer."""
        return await self._rights.get((subject, question), lambda: self._review_access(subject, question))

    async def _review_token(self, token: str) -> _Found:
        body = {"spec": {"token": token, "audiences": [self._audience]}}
        status = await self._review("authentication.k8s.io/v1", "TokenReview", body)
        # An API server that knows nothing of audiences names none, and its yes is not about us (Kubernetes API, TokenReview).
        is_ours = status.authenticated and self._audience in status.audiences
        name = status.user.username
        if is_ours and (not name or name.startswith(_OWN)):
            _log.warning("a token is refused: the cluster gives it a name that only Entrepot gives", name=name)
            is_ours = False
        self._reviews.labels("token", "allowed" if is_ours else "denied").inc()
        if not is_ours:
            return _Found(None)
        groups = (*(group for group in status.user.groups if not group.startswith(_OWN)), AUTHENTICATED)
        extra = tuple(sorted((name, tuple(values)) for name, values in status.user.extra.items()))
        return _Found(Subject(name, groups, status.user.uid, extra))

    async def _review_access(self, subject: Subject, question: Question) -> bool:
        attributes = {
            "group": _GROUP,
            "resource": question.resource,
            "subresource": "content",
            "verb": question.verb,
            "namespace": question.namespace,
            "name": question.name,
        }
        spec = {
            "user": subject.name,
            "groups": subject.groups,
            "uid": subject.uid,
            "extra": dict(subject.extra),
            "resourceAttributes": attributes,
        }
        status = await self._review("authorization.k8s.io/v1", "SubjectAccessReview", {"spec": spec})
        self._reviews.labels("access", "allowed" if status.allowed else "denied").inc()
        return status.allowed

    async def _review(self, version: str, kind: str, body: Mapping[str, Any]) -> _Status:
        what = "token" if kind == "TokenReview" else "access"
        try:
            async with asyncio.timeout(self._timeout), self._slots:
                status, text = await self._post(
                    f"/apis/{version}/{kind.lower()}s", {"apiVersion": version, "kind": kind, **body}
                )
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            self._reviews.labels(what, "failed").inc()
            raise KubernetesUnavailable(f"the API server does not answer: {error or type(error).__name__}") from error
        if status // 100 != 2:
            self._reviews.labels(what, "failed").inc()
            # The answer's own words may hold what was asked: the token.
            raise KubernetesUnavailable(f"the API server answers a {kind} with {status}")
        try:
            return msgspec.json.decode(text, type=_Review).status
        except msgspec.DecodeError as error:
            self._reviews.labels(what, "failed").inc()
            raise KubernetesUnavailable(f"the API server's answer is no {kind}") from error

    async def _post(self, path: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        parameters = await self._client.param_serialize(
            "POST",
            path,
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=dict(body),
            auth_settings=["BearerToken"],
        )
        response = await self._client.call_api(*parameters, _request_timeout=self._timeout)
        return response.status, await response.read()  # type: ignore[no-untyped-call] # the client is typed in part


@contextlib.asynccontextmanager
async def open_cluster(settings: TokenSettings, *, reviews: Counter) -> AsyncIterator[Cluster | None]:
    """The cluster that the setting's kubeconfig names, or else the one this pod runs in; None if there is neither."""
    configuration = Configuration()
    if settings.kubeconfig is not None:
        await load_kube_config(str(settings.kubeconfig), client_configuration=configuration)  # type: ignore[no-untyped-call]
    elif "KUBERNETES_SERVICE_HOST" in os.environ and await asyncio.to_thread(_ACCOUNT.is_file):
        load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    else:
        yield None
        return
    async with ApiClient(configuration) as client:
        yield Cluster(client, settings, reviews=reviews)
