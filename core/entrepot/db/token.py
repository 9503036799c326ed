"""What the token service asks of PostgreSQL: which distributions the names in a request's scopes stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from entrepot.db.pool import Connection, Pool, all_rows, queries, translated

__all__ = ["DistributionRow", "find_distributions"]

_sql = queries("token")


@dataclass(frozen=True, slots=True)
class DistributionRow:
    """A distribution: where content is served, and the resource (namespace and name) that rights to it hang on."""

    base_path: str
    uuid: UUID
    access: str
    namespace: str
    name: str


async def find_distributions(connection: Connection | Pool, names: Sequence[str]) -> dict[str, DistributionRow]:
    """By base path; what does not exist is absent. Raises `DatabaseUnavailable`."""
    with translated():
        rows = await all_rows(_sql.find_distributions(connection, names=list(names)))
    return {row["base_path"]: DistributionRow(*row) for row in rows}
