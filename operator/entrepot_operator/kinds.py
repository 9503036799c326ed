"""Our kinds, their names in the API, and the small facts about objects that all modules need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from uuid import UUID

__all__ = [
    "ADOPT",
    "DISTRIBUTION",
    "FINALIZER",
    "GROUP",
    "KINDS",
    "PATH_PREFIXES",
    "REMOTE",
    "REPOSITORY",
    "REPOSITORY_LABEL",
    "REPOSITORY_VERSION",
    "SYNC_REQUESTED",
    "VERSION",
    "Key",
    "Kind",
    "Object",
    "annotation",
    "fingerprint",
    "key_of",
    "references",
    "uid_of",
]

Object: TypeAlias = dict[str, Any]
"""A Kubernetes object as JSON."""

GROUP: Final = "entrepot.dev"
VERSION: Final = "v1alpha1"

FINALIZER: Final = "entrepot.dev/content"
"""Held on Repository and Distribution, so that their deletion is seen even if the operator was down."""
ADOPT: Final = "entrepot.dev/adopt"
"""Annotation: the uuid of content that this Repository takes over."""
SYNC_REQUESTED: Final = "entrepot.dev/sync-requested-at"
"""Annotation: any new value asks for a sync."""
PATH_PREFIXES: Final = "entrepot.dev/path-prefixes"
"""Annotation of a Namespace: base paths it may use besides its own name, comma-separated; `*` for all."""
REPOSITORY_LABEL: Final = "entrepot.dev/repository"
"""Label of RepositoryVersions."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One of our kinds."""

    name: str
    plural: str


REMOTE: Final = Kind("Remote", "remotes")
REPOSITORY: Final = Kind("Repository", "repositories")
DISTRIBUTION: Final = Kind("Distribution", "distributions")
REPOSITORY_VERSION: Final = Kind("RepositoryVersion", "repositoryversions")
KINDS: Final = (REMOTE, REPOSITORY, DISTRIBUTION)
"""Those that are reconciled; RepositoryVersions are written by the Repository's reconciler."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What the queue holds: an object by its name."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


def key_of(kind: Kind, body: Mapping[str, Any]) -> Key:
    """The key of an object."""
    return Key(kind.name, body["metadata"]["namespace"], body["metadata"]["name"])


def uid_of(body: Mapping[str, Any]) -> UUID:
    """The object's UID."""
    return UUID(body["metadata"]["uid"])


def annotation(body: Mapping[str, Any], name: str) -> str | None:
    """An annotation's value; None where there is none or it is empty."""
    return (body["metadata"].get("annotations") or {}).get(name) or None


def fingerprint(body: Mapping[str, Any]) -> tuple[object, ...]:
    """What of an object a reconciler reads: when this is as before, only the status has changed, and that we wrote ourselves."""
    metadata = body["metadata"]
    annotations = metadata.get("annotations") or {}
    return (
        metadata["uid"],
        metadata.get("generation", 0),
        "deletionTimestamp" in metadata,
        FINALIZER in (metadata.get("finalizers") or ()),
        annotations.get(ADOPT),
        annotations.get(SYNC_REQUESTED),
    )


def references(kind: Kind, body: Mapping[str, Any]) -> tuple[Key, ...]:
    """Objects of ours that an object refers to: when they change, it is looked at again."""
    namespace = body["metadata"]["namespace"]
    spec = body.get("spec") or {}
    if kind is REPOSITORY:
        sources = (spec.get("mirror") or {}).get("sources") or ()
        return tuple(Key(REMOTE.name, namespace, source["remoteRef"]["name"]) for source in sources)
    if kind is DISTRIBUTION:
        return (Key(REPOSITORY.name, namespace, spec["repositoryRef"]["name"]),)
    return ()
