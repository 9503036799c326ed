"""Secrets made if absent, and never changed afterwards, whoever else makes them at the same time.

Helm's template functions are no place for this: what they make up anew at each rendering would lock the release out of its own database at
the next upgrade, and tools that render without a cluster cannot look up what was there.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

import structlog

from entrepot_setup.api import Api
from entrepot_setup.errors import ApiFailed, SetupFailed
from entrepot_setup.generate import Wanted

__all__ = ["ensure_secret"]

_ATTEMPTS: Final = 5  # each lost race is another's success, so two are rare already

_log = structlog.get_logger(__name__)


async def ensure_secret(api: Api, wanted: Wanted, *, namespace: str, release: str) -> dict[str, bytes]:
    """The Secret's content, after what was missing of it has been made.

    Raises:
        ApiFailed: the API server refused.
    """
    collection = f"/api/v1/namespaces/{namespace}/secrets"
    for _ in range(_ATTEMPTS):
        found = await api.get(f"{collection}/{wanted.name}")
        present: Mapping[str, str] = (found or {}).get("data") or {}
        missing = wanted.missing(present)
        try:
            if found is None:
                found = await api.create(collection, _new(wanted, missing, release=release))
                _log.info("secret made", name=wanted.name, purpose=wanted.purpose)
            elif missing:
                change = {
                    "metadata": {"resourceVersion": found["metadata"]["resourceVersion"]},
                    "data": _encoded(missing),
                }
                found = await api.merge(f"{collection}/{wanted.name}", change)
                _log.info("secret completed", name=wanted.name, keys=sorted(missing))
            else:
                _log.info("secret kept", name=wanted.name)
        except ApiFailed as error:
            if error.status == 409:
                continue
            raise
        return {key: base64.b64decode(value) for key, value in found["data"].items()}
    raise SetupFailed(f"Secret {wanted.name} changes faster than it can be read: does something else manage it?")


def _new(wanted: Wanted, data: Mapping[str, bytes], *, release: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": wanted.name,
            "labels": {
                "app.kubernetes.io/name": "entrepot",
                "app.kubernetes.io/instance": release,
                "app.kubernetes.io/managed-by": "entrepot-setup",
            },
            "annotations": {"entrepot.dev/purpose": wanted.purpose},
        },
        "type": "Opaque",
        "data": _encoded(data),
    }


def _encoded(data: Mapping[str, bytes]) -> dict[str, str]:
    return {key: base64.b64encode(value).decode() for key, value in data.items()}
