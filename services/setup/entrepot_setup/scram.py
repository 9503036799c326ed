"""Passwords as PostgreSQL keeps them (SCRAM-SHA-256, RFC 5802 and RFC 7677), so that none appears in a statement or a server log."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import Final

__all__ = ["verifier"]

_ITERATIONS: Final = 4096  # PostgreSQL's own; our passwords are random, so stretching adds nothing


def verifier(password: str, *, salt: bytes | None = None) -> str:
    """What `create role … password` takes in place of the password. ASCII only, which SASLprep leaves as it is."""
    salt = secrets.token_bytes(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${_ITERATIONS}:{_text(salt)}${_text(stored)}:{_text(server)}"


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
