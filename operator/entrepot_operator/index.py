"""What the watches have told: which objects there are, in which state, and which refer to which.

Small on purpose, some numbers and names an object: reconcilers read objects from the API. It serves three questions: did anything change that a
reconciler would act on; who must be looked at again when this one changes; and does the comparison see anything that the watches never told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from entrepot_operator.kinds import Key, Kind, Object, fingerprint, key_of, references

__all__ = ["Index"]


class Index:
    """Fingerprints and references, by key."""

    def __init__(self) -> None:
        self._fingerprints: dict[Key, tuple[object, ...]] = {}
        self._references: dict[Key, tuple[Key, ...]] = {}
        self._dependants: dict[Key, set[Key]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._fingerprints)

    def __contains__(self, key: Key) -> bool:
        return key in self._fingerprints

    def fingerprint(self, key: Key) -> tuple[object, ...] | None:
        """The state of an object as it was told last."""
        return self._fingerprints.get(key)

    def keys(self, kind: Kind | None = None) -> list[Key]:
        """All objects, or those of a kind."""
        return [key for key in self._fingerprints if kind is None or key.kind == kind.name]

    def dependants(self, key: Key) -> Iterable[Key]:
        """Objects that refer to this one, whether it exists or not."""
        return tuple(self._dependants.get(key, ()))

    def put(self, kind: Kind, body: Object) -> bool:
        """Take in an object; gives whether anything is new that a reconciler would act on."""
        key = key_of(kind, body)
        new = fingerprint(body)
        if self._fingerprints.get(key) == new:
            return False
        self._fingerprints[key] = new
        self._refer(key, references(kind, body))
        return True

    def remove(self, key: Key) -> bool:
        """An object is gone; gives whether it was known."""
        self._refer(key, ())
        return self._fingerprints.pop(key, None) is not None

    def _refer(self, key: Key, targets: tuple[Key, ...]) -> None:
        for target in self._references.pop(key, ()):
            self._dependants[target].discard(key)
            if not self._dependants[target]:
                del self._dependants[target]
        if targets:
            self._references[key] = targets
        for target in targets:
            self._dependants[target].add(key)
