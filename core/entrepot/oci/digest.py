"""Digests: the names of all content.

Paths, object keys and rows are made from digests, so a `Digest` that exists is a valid one: the check sits in the
constructor, and nothing further on has to ask again. Only the two algorithms registered by the image specification
are known; another one could not be verified here, and what is not verified is not stored.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from entrepot.oci.errors import ErrorCode, GrammarError, excerpt

Buffer = bytes | bytearray | memoryview


class DigestInvalid(GrammarError):
    """Not a digest, or one of an algorithm that is not registered."""

    code = ErrorCode.DIGEST_INVALID


# OCI image specification 1.1, descriptor.md, "Digests" and "Registered algorithms":
# > digest    ::= algorithm ":" encoded
# > sha256    [a-f0-9]{64}
# > sha512    [a-f0-9]{128}
_HEX: Final[dict[str, re.Pattern[str]]] = {
    "sha256": re.compile(r"[a-f0-9]{64}"),
    "sha512": re.compile(r"[a-f0-9]{128}"),
}
ALGORITHMS: Final = frozenset(_HEX)
MAX_LENGTH: Final = len("sha512:") + 128


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """`algorithm:hex`. Ordered, so that rows can be locked and inserted in one order everywhere."""

    algorithm: str
    hex: str
    """Lower case, of the algorithm's length."""

    def __post_init__(self) -> None:
        pattern = _HEX.get(self.algorithm)
        if pattern is None:
            known = ", ".join(sorted(ALGORITHMS))
            raise DigestInvalid(f"the digest algorithm {excerpt(self.algorithm)} is not one of {known}")
        if not pattern.fullmatch(self.hex):
            raise DigestInvalid(f"{excerpt(self.hex)} is not a lower-case hexadecimal {self.algorithm} value")

    @classmethod
    def parse(cls, value: str) -> Digest:
        """Raises DigestInvalid."""
        if len(value) > MAX_LENGTH:
            raise DigestInvalid(f"a digest has at most {MAX_LENGTH} characters: {excerpt(value)}")
        algorithm, colon, encoded = value.partition(":")
        if not colon:
            raise DigestInvalid(f"a digest is written <algorithm>:<hex>: {excerpt(value)}")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, content: Buffer, algorithm: str = "sha256") -> Digest:
        """The digest of `content`. Raises DigestInvalid if the algorithm is not registered."""
        hasher = Hasher(algorithm)
        hasher.update(content)
        return hasher.digest()

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


class Hasher:
    """Hashes and counts what passes through. For content that is verified while it streams.

    `update` with a large chunk releases the interpreter lock; whoever feeds megabytes at once does so in a thread.
    """

    __slots__ = ("_hash", "_size", "algorithm")

    def __init__(self, algorithm: str = "sha256") -> None:
        if algorithm not in ALGORITHMS:
            raise DigestInvalid(f"the digest algorithm {excerpt(algorithm)} is not registered")
        self.algorithm: Final = algorithm
        self._hash = hashlib.new(algorithm, usedforsecurity=False)
        self._size = 0

    def update(self, chunk: Buffer) -> None:
        self._hash.update(chunk)
        self._size += memoryview(chunk).nbytes

    def copy(self) -> Hasher:
        """One that goes on by itself from here."""
        other = Hasher(self.algorithm)
        other._hash, other._size = self._hash.copy(), self._size
        return other

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._size

    def digest(self) -> Digest:
        """Of the bytes so far; more may follow."""
        return Digest(self.algorithm, self._hash.hexdigest())
