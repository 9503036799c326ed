"""Applying the migrations, with dbmate, under its advisory lock: one process at a time.

Runs in the operator's init container and in tests. Changes are expand/contract only, so that parts of the release before go on working;
every part waits until the schema is new enough (`pool.schema_is_ready`).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from entrepot.db.pool import connect
from entrepot.settings import DatabaseSettings

__all__ = ["MigrationFailed", "migrate"]

_MIGRATIONS = Path(__file__).parent / "migrations"


class MigrationFailed(Exception):
    """dbmate failed; the message is what it said."""


def _url(settings: DatabaseSettings) -> str:
    parts = urlsplit(settings.dsn)
    query = dict(parse_qsl(parts.query))
    query.setdefault("sslmode", "disable")  # dbmate's driver would insist on TLS where ours only prefers it
    user = quote(parts.username or "", safe="")
    secret = quote(settings.password, safe="")
    netloc = f"{user}:{secret}@{parts.netloc.rpartition('@')[2]}" if secret else parts.netloc
    return urlunsplit(("postgres", netloc, parts.path, urlencode(query), ""))


def _dbmate() -> str:
    beside = Path(sys.executable).with_name("dbmate")
    found = str(beside) if beside.exists() else shutil.which("dbmate")
    if found is None:
        raise MigrationFailed("dbmate is not installed beside Python nor on PATH")
    return found


async def migrate(settings: DatabaseSettings) -> None:
    """Bring the database to the schema of this code, as its owner; does nothing where it has it already.

    Raises:
        DatabaseUnavailable: PostgreSQL does not answer.
        MigrationFailed: a migration failed; it was rolled back.
    """
    probe = await connect(settings, application="entrepot-migrate")
    await probe.close()
    process = await asyncio.create_subprocess_exec(
        _dbmate(), "--migrations-dir", str(_MIGRATIONS), "--no-dump-schema", "--migration-lock", "--migration-lock-timeout", "10m", "migrate",
        env={**os.environ, "DATABASE_URL": _url(settings)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise MigrationFailed(output.decode(errors="replace").strip())
