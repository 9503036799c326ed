"""The few Kubernetes API requests that the set-up makes, as plain dictionaries.

The official client finds, authenticates and speaks to the API server. Its typed models are left aside on purpose: a
CustomResourceDefinition must reach the server as it stands in its file, not as a model of some client version understands it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from entrepot_setup.errors import ApiFailed, SetupFailed

__all__ = ["Api", "open_api"]

_TIMEOUT = 30  # seconds for one request


class Api:
    """Requests to the API server of this cluster."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def get(self, path: str) -> dict[str, Any] | None:
        """An object, or None where there is none by that name."""
        try:
            return await self._request("GET", path)
        except ApiFailed as error:
            if error.status == 404:
                return None
            raise

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST to a collection. Raises ApiFailed with status 409 where the name is taken."""
        return await self._request("POST", path, body=body)

    async def merge(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """JSON merge patch. With a resourceVersion in the body: ApiFailed with status 409 where the object has moved on."""
        return await self._request("PATCH", path, body=body, content_type="application/merge-patch+json")

    async def apply(self, path: str, body: Mapping[str, Any], *, manager: str) -> dict[str, Any]:
        """Server-side apply, taking over fields that another manager (such as `kubectl apply`) set before."""
        query = [("fieldManager", manager), ("force", "true")]
        return await self._request("PATCH", path, body=body, query=query, content_type="application/apply-patch+yaml")

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: list[tuple[str, str]] | None = None,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        parameters = await self._client.param_serialize(
            method,
            path,
            query_params=query or [],
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=None if body is None else dict(body),
            auth_settings=["BearerToken"],
        )
        try:
            response = await self._client.call_api(*parameters, _request_timeout=_TIMEOUT)
            text: bytes = await response.read()  # type: ignore[no-untyped-call] # the client is typed in part
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            raise ApiFailed(f"the Kubernetes API does not answer: {error or type(error).__name__}", status=0) from error
        if not 200 <= response.status < 300:
            raise ApiFailed(f"{method} {path}: {response.status} {_message(text)}", status=response.status)
        answer: dict[str, Any] = json.loads(text)
        return answer


def _message(text: bytes) -> str:
    """The sentence of a Status object, or the beginning of what came instead of one."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200].decode(errors="replace")


@contextlib.asynccontextmanager
async def open_api(kubeconfig: Path | None = None) -> AsyncIterator[Api]:
    """The API server that this file names, or else the one of the pod's cluster, as its ServiceAccount.

    Raises:
        SetupFailed: this is no pod with a ServiceAccount's token.
    """
    configuration = Configuration()
    if kubeconfig is None:
        try:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        except ConfigException as error:
            raise SetupFailed(f"the set-up runs in a pod that has a ServiceAccount's token: {error}") from error
    else:
        await load_kube_config(str(kubeconfig), client_configuration=configuration)  # type: ignore[no-untyped-call]
    async with ApiClient(configuration) as client:
        yield Api(client)
