"""The schema as one file, for reading and review: `python -m tests.schema` writes it from the migrations (`make schema`)."""

from __future__ import annotations

import asyncio
import re
import subprocess
from pathlib import Path

import entrepot.db
from entrepot.db.migrate import migrate
from entrepot.settings import DatabaseSettings
from tests.servers import Postgres, running_postgres

SCHEMA = Path(entrepot.db.__file__).parent / "schema.sql"


def dump(server: Postgres, database: str) -> str:
    """The schema of a database as PostgreSQL tells it, without what differs from server to server."""
    command = [
        str(server.binaries / "pg_dump"),
        "--schema-only",
        "--no-owner",
        server.dsn(user="postgres", database=database),
    ]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kept = [
        line
        for line in text.splitlines()
        if not re.match(r"--|SET |SELECT pg_catalog\.set_config|\\(un)?restrict", line)
    ]
    return (
        "-- Made from the migrations by `make schema`; a test compares.\n"
        + re.sub(r"\n{2,}", "\n\n", "\n".join(kept))
        + "\n"
    )


def main() -> None:
    with running_postgres() as server:
        asyncio.run(migrate(DatabaseSettings(dsn=server.dsn(user="postgres", database="postgres"))))
        SCHEMA.write_text(dump(server, "postgres"))


if __name__ == "__main__":
    main()
