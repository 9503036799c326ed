"""What the token service asks of PostgreSQL: what the names in a request's scopes stand for, and where there is anything to list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from entrepot.db.pool import Connection, Pool, all_rows, queries, translated

__all__ = ["PlaceRow", "find_places", "list_namespaces"]

_sql = queries("token")


@dataclass(frozen=True, slots=True)
class PlaceRow:
    """What a name stands for, and the resource (kind, namespace and name) that rights to it hang on."""

    name: str
    uuid: UUID
    access: str
    resource: str
    """distributions or repositories."""
    namespace: str
    resource_name: str


async def find_places(connection: Connection | Pool, names: Sequence[str]) -> dict[str, PlaceRow]:
    """By name; what does not exist is absent. Raises `DatabaseUnavailable`."""
    with translated():
        rows = await all_rows(_sql.find_places(connection, names=list(names)))
    return {row["name"]: PlaceRow(*row) for row in rows}


async def list_namespaces(connection: Connection | Pool, *, count: int) -> list[str]:
    """The first namespaces that have distributions, at most `count`. Raises `DatabaseUnavailable`."""
    with translated():
        rows = await all_rows(_sql.list_namespaces(connection, count=count))
    return [row["namespace"] for row in rows]
