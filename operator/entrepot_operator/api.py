"""The Kubernetes API as far as the operator needs it: JSON objects in and out, and errors that say what follows.

The official client finds and authenticates against the API server. Its models are left aside: our objects have none, and building them for
every list would cost more than all the rest. Lists are paged; of RepositoryVersions only the metadata is fetched.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import msgspec
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config

from entrepot.errors import EntrepotError, Failed
from entrepot_operator.kinds import GROUP, VERSION, Kind, Object

__all__ = ["FIELD_MANAGER", "Api", "ApiForbidden", "ApiUnavailable", "Conflict", "open_api"]

FIELD_MANAGER: Final = "entrepot-operator"
_PAGE: Final = 500
_TIMEOUT: Final = aiohttp.ClientTimeout(total=30, connect=5)
_METADATA_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"


class ApiUnavailable(Failed):
    """The API server does not answer, or not now."""

    default_reason = "ApiServerUnavailable"


class ApiForbidden(Failed):
    """The operator's ServiceAccount lacks a right."""

    default_reason = "Forbidden"


class ApiRefused(Failed):
    """The API server refuses what it was sent."""

    default_reason = "InternalError"


class Conflict(EntrepotError):
    """The object has changed, was deleted or exists already: look again."""

    default_reason = "Conflict"


class Api:
    """Requests to the API server."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """One of our objects; None where there is none."""
        return await self._get(_path(kind, namespace, name))

    async def pages(
        self, kind: Kind, *, namespace: str | None = None, label: str = "", metadata_only: bool = False
    ) -> AsyncIterator[list[Object]]:
        """All objects of a kind, by page."""
        query = [("limit", str(_PAGE))] + ([("labelSelector", label)] if label else [])
        accept = _METADATA_ONLY if metadata_only else "application/json"
        token = ""
        while True:
            page = await self._request(
                "GET",
                _path(kind, namespace),
                query=[*query, ("continue", token)] if token else query,
                accept=accept,
            )
            # Of a list without its objects' bodies an empty one comes as null.
            yield page["items"] or []
            token = page["metadata"].get("continue") or ""
            if not token:
                return

    async def set_finalizers(self, kind: Kind, body: Object, finalizers: Sequence[str]) -> Object:
        """Replace the finalizers of an object as it was read. Raises Conflict where it has changed since."""
        metadata = body["metadata"]
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": list(finalizers)}}
        path = _path(kind, metadata["namespace"], metadata["name"])
        return await self._request("PATCH", path, body=patch, content_type="application/merge-patch+json")

    async def apply_status(self, kind: Kind, body: Object, status: Mapping[str, Any]) -> Object:
        """Make the status of an object this one, in one server-side apply. Raises Conflict where the object is another by now."""
        metadata = body["metadata"]
        path = _path(kind, metadata["namespace"], metadata["name"]) + "/status"
        wanted = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": kind.name,
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]},
            "status": status,
        }
        return await self._apply(path, wanted)

    async def apply(self, kind: Kind, namespace: str, wanted: Object) -> Object:
        """Create one of our objects or make it this one."""
        return await self._apply(_path(kind, namespace, wanted["metadata"]["name"]), wanted)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        """Delete one of our objects, if it still is that one."""
        await self._delete(_path(kind, namespace, name), {"preconditions": {"uid": uid}})

    async def secret(self, namespace: str, name: str) -> Object | None:
        """A Secret, by its name only: the operator never lists Secrets."""
        return await self._get(f"/api/v1/namespaces/{quote(namespace)}/secrets/{quote(name)}")

    async def namespace(self, name: str) -> Object | None:
        """A Namespace."""
        return await self._get(f"/api/v1/namespaces/{quote(name)}")

    async def job(self, namespace: str, name: str) -> Object | None:
        """A Job."""
        return await self._get(f"/apis/batch/v1/namespaces/{quote(namespace)}/jobs/{quote(name)}")

    async def create_job(self, namespace: str, body: Object) -> Object:
        """Create a Job. Raises Conflict where there is one of that name."""
        return await self._request("POST", f"/apis/batch/v1/namespaces/{quote(namespace)}/jobs", body=body)

    async def delete_job(self, namespace: str, name: str) -> None:
        """Delete a Job with its pods."""
        path = f"/apis/batch/v1/namespaces/{quote(namespace)}/jobs/{quote(name)}"
        await self._delete(path, {"propagationPolicy": "Background"})

    async def job_pods(self, namespace: str, job: str) -> list[Object]:
        """The pods of a Job, of many only the first page."""
        query = [("labelSelector", f"batch.kubernetes.io/job-name={job}"), ("limit", "50")]
        page = await self._request("GET", f"/api/v1/namespaces/{quote(namespace)}/pods", query=query)
        items: list[Object] = page["items"]
        return items

    async def create_event(self, namespace: str, body: Object) -> None:
        """Create an event."""
        await self._request("POST", f"/api/v1/namespaces/{quote(namespace)}/events", body=body)

    async def _get(self, path: str) -> Object | None:
        try:
            return await self._request("GET", path)
        except _Missing:
            return None

    async def _apply(self, path: str, body: Mapping[str, Any]) -> Object:
        query = [("fieldManager", FIELD_MANAGER), ("force", "true")]
        return await self._request("PATCH", path, body=body, query=query, content_type="application/apply-patch+yaml")

    async def _delete(self, path: str, options: Mapping[str, Any]) -> None:
        with contextlib.suppress(_Missing):
            await self._request("DELETE", path, body=options)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Sequence[tuple[str, str]] = (),
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        parameters = await self._client.param_serialize(
            method,
            path,
            query_params=list(query),
            header_params={"Accept": accept, "Content-Type": content_type},
            body=None if body is None else dict(body),
            auth_settings=["BearerToken"],
        )
        try:
            response = await self._client.call_api(*parameters, _request_timeout=_TIMEOUT)
            text: bytes = await response.read()  # type: ignore[no-untyped-call] # the client is typed in part
        except (OSError, TimeoutError, aiohttp.ClientError) as error:
            what = str(error) or type(error).__name__
            raise ApiUnavailable(f"the Kubernetes API does not answer: {what}") from error
        if 200 <= response.status < 300:
            answer: Object = msgspec.json.decode(text)
            return answer
        raise _error(method, path, response.status, text=text, retry_after=response.headers.get("Retry-After"))


class _Missing(Conflict):
    """404: for whoever did not expect it the same as a conflict."""


def _error(method: str, path: str, status: int, *, text: bytes, retry_after: str | None) -> EntrepotError:
    """What an answer means. The server's sentence names objects and fields, never the content of a Secret."""
    try:
        said = str(msgspec.json.decode(text)["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        said = text[:200].decode(errors="replace")
    message = f"{method} {path}: {status} {said}"
    match status:
        case 404:
            return _Missing(message)
        case 409:
            return Conflict(message)
        case 403 if "exceeded quota" not in said and "being terminated" not in said:
            return ApiForbidden(message)
        case 429 | 500 | 502 | 503 | 504:
            seconds = int(retry_after) if retry_after and retry_after.isdecimal() else None
            return ApiUnavailable(message, retry_after=timedelta(seconds=seconds) if seconds else None)
        case _:
            return ApiRefused(message)


def _path(kind: Kind, namespace: str | None, name: str = "") -> str:
    path = f"/apis/{GROUP}/{VERSION}"
    if namespace is not None:
        path += f"/namespaces/{quote(namespace)}"
    path += f"/{kind.plural}"
    return f"{path}/{quote(name)}" if name else path


@contextlib.asynccontextmanager
async def open_api() -> AsyncIterator[Api]:
    """The API server as a pod (its ServiceAccount) or a developer's KUBECONFIG names it."""
    configuration = Configuration()
    if "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ:
        load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    else:
        path = os.environ.get("KUBECONFIG") or None
        await load_kube_config(path, client_configuration=configuration)  # type: ignore[no-untyped-call]
    async with ApiClient(configuration) as client:
        yield Api(client)
