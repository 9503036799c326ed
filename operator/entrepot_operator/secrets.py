"""From the Secrets that a Remote names to the credentials that are sealed for its runs.

Messages name Secret and key, and never quote a value.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from entrepot.credentials import Credentials
from entrepot.oci.hosts import AuthConfigInvalid, Origin, auths_of, find_auth, hosts_of
from entrepot_operator.api import Api
from entrepot_operator.context import StalledForNow
from entrepot_operator.kinds import Object

__all__ = ["read_credentials"]

_DOCKER: Final = "kubernetes.io/dockerconfigjson"
_BASIC: Final = "kubernetes.io/basic-auth"
_TLS: Final = "kubernetes.io/tls"
_SHOWN_HOSTS: Final = 10


class _Reader:
    """Reads the Secrets of one namespace, each failure being one that only a changed Secret ends."""

    def __init__(self, api: Api, namespace: str, *, look_again: timedelta) -> None:
        self._api = api
        self._namespace = namespace
        self._look_again = look_again

    async def get(self, field: str, name: str) -> Object:
        secret = await self._api.secret(self._namespace, name)
        if secret is None:
            raise self.stalled(
                "SecretNotFound", f"{field}: there is no Secret {name!r} in the namespace {self._namespace}; make it"
            )
        return secret

    def text(self, field: str, secret: Mapping[str, Any], key: str) -> str:
        """The value of a key, as text."""
        name = secret["metadata"]["name"]
        encoded = (secret.get("data") or {}).get(key)
        if not encoded:
            raise self.stalled("SecretInvalid", f"{field}: the Secret {name!r} has no key {key!r}, or it is empty")
        try:
            return base64.b64decode(encoded, validate=True).decode()
        except (binascii.Error, ValueError):
            raise self.stalled("SecretInvalid", f"{field}: {key!r} of the Secret {name!r} is not text") from None

    def stalled(self, reason: str, message: str) -> StalledForNow:
        return StalledForNow(message, reason=reason, after=self._look_again)


async def read_credentials(
    api: Api, remote: Object, *, origin: Origin, upstream: str | None, look_again: timedelta
) -> Credentials:
    """What the Secrets of a Remote hold for its host, the same whether a repository `upstream` is asked for or not.

    Raises:
        StalledForNow: a Secret is missing, is not as it must be, or has nothing for the Remote's host, or for `upstream` there.
    """
    reader = _Reader(api, remote["metadata"]["namespace"], look_again=look_again)
    spec = remote["spec"]
    tls = spec.get("tls") or {}
    login, ca, client_cert, client_key = Credentials(), "", "", ""
    if (ref := spec.get("credentialsSecretRef")) is not None:
        login = await _login(reader, ref["name"], origin=origin, upstream=upstream)
    if (ref := tls.get("caSecretRef")) is not None:
        ca = await _authority(reader, ref["name"])
    if (ref := tls.get("clientCertSecretRef")) is not None:
        client_cert, client_key = await _client_certificate(reader, ref["name"])
    return replace(login, ca=ca, client_cert=client_cert, client_key=client_key)


async def _login(reader: _Reader, name: str, *, origin: Origin, upstream: str | None) -> Credentials:
    field = "spec.credentialsSecretRef"
    secret = await reader.get(field, name)
    kind = secret.get("type")
    if kind == _BASIC:
        return Credentials(reader.text(field, secret, "username"), reader.text(field, secret, "password"))
    if kind != _DOCKER:
        raise reader.stalled(
            "SecretInvalid", f"{field}: the Secret {name!r} is of type {kind}; it must be {_DOCKER} or {_BASIC}"
        )
    text = reader.text(field, secret, ".dockerconfigjson")
    try:
        config = json.loads(text)
        if not isinstance(config, dict):
            raise TypeError
    except (ValueError, TypeError, RecursionError):
        raise reader.stalled(
            "SecretInvalid", f"{field}: '.dockerconfigjson' of the Secret {name!r} is not a JSON object"
        ) from None
    try:
        found, hosts = auths_of(config, origin.authority), hosts_of(config)
        serves = bool(found) if upstream is None else find_auth(config, origin.authority, upstream) is not None
    except AuthConfigInvalid as error:
        raise reader.stalled("SecretInvalid", f"{field}: the Secret {name!r}: {error}") from None
    if not serves:
        where = origin.authority if upstream is None else f"{origin.authority}/{upstream}"
        has = ", ".join(hosts[:_SHOWN_HOSTS]) + (", …" if len(hosts) > _SHOWN_HOSTS else "") or "none"
        raise reader.stalled(
            "NoCredentialsForHost",
            f"{field}: the Secret {name!r} has no entry for {where}; it has entries for: {has}",
        )
    return Credentials(auths=found)


async def _authority(reader: _Reader, name: str) -> str:
    field = "spec.tls.caSecretRef"
    text = reader.text(field, await reader.get(field, name), "ca.crt")
    try:
        x509.load_pem_x509_certificates(text.encode())
    except ValueError:
        raise reader.stalled(
            "SecretInvalid", f"{field}: 'ca.crt' of the Secret {name!r} holds no PEM certificates"
        ) from None
    return text


async def _client_certificate(reader: _Reader, name: str) -> tuple[str, str]:
    field = "spec.tls.clientCertSecretRef"
    secret = await reader.get(field, name)
    if secret.get("type") != _TLS:
        raise reader.stalled(
            "SecretInvalid", f"{field}: the Secret {name!r} is of type {secret.get('type')}; it must be {_TLS}"
        )
    certificate, key = reader.text(field, secret, "tls.crt"), reader.text(field, secret, "tls.key")
    try:
        certificates = x509.load_pem_x509_certificates(certificate.encode())
        belongs = certificates[0].public_key() == load_pem_private_key(key.encode(), password=None).public_key()
    except (ValueError, TypeError):
        raise reader.stalled(
            "SecretInvalid",
            f"{field}: 'tls.crt' and 'tls.key' of the Secret {name!r} are not PEM, or the key has a password",
        ) from None
    if not belongs:
        raise reader.stalled(
            "SecretInvalid", f"{field}: 'tls.key' of the Secret {name!r} does not belong to its 'tls.crt'"
        )
    return certificate, key
