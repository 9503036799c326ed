"""PostgreSQL's roles: the owner of the database, and one login a part that can do what the migrations grant it and no more."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg
import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_delay, wait_fixed

from entrepot.db.pool import Connection, connect, queries
from entrepot.errors import DatabaseUnavailable
from entrepot.settings import DatabaseSettings
from entrepot_setup.errors import SetupFailed
from entrepot_setup.scram import verifier

__all__ = ["PasswordRefused", "ensure_owner", "ensure_roles", "role_of", "wait_for_database", "with_password"]

_LOCK: Final = 0x656E7473  # any number that is ours: "ents"; two set-ups at a time would trip over the same rows
_PAUSE: Final = 1.0  # seconds between attempts

_sql: Any = queries("setup")
_log = structlog.get_logger(__name__)


class PasswordRefused(SetupFailed):
    """PostgreSQL runs and refuses the password."""


def role_of(part: str) -> str:
    """The role that a part logs in as."""
    return f"entrepot_{part}"


async def wait_for_database(
    settings: DatabaseSettings, *, seconds: float, password_may_come: bool = False
) -> asyncpg.Connection[asyncpg.Record]:
    """A connection, as soon as PostgreSQL accepts one.

    Args:
        seconds: how long to try.
        password_may_come: a refused password, or a missing database, is waited for as well: the set-up may not have made it yet.

    Raises:
        PasswordRefused: the password is wrong (at once, or at the end if it may come).
        SetupFailed: PostgreSQL did not answer in time.
    """
    waited_for: tuple[type[Exception], ...] = (DatabaseUnavailable,)
    if password_may_come:
        waited_for = (DatabaseUnavailable, PasswordRefused, asyncpg.InvalidCatalogNameError)
    attempts = AsyncRetrying(
        stop=stop_after_delay(seconds),
        wait=wait_fixed(_PAUSE),
        retry=retry_if_exception_type(waited_for),
        before_sleep=_tell,
        reraise=True,
    )
    try:
        return await attempts(_connect, settings)
    except (DatabaseUnavailable, asyncpg.InvalidCatalogNameError) as error:
        where = urlsplit(settings.dsn)
        raise SetupFailed(
            f"PostgreSQL at {where.hostname}:{where.port or 5432} was not ready within {seconds:.0f} s: {error}"
        ) from error


async def _connect(settings: DatabaseSettings) -> asyncpg.Connection[asyncpg.Record]:
    try:
        return await connect(settings, application="entrepot-setup")
    except DatabaseUnavailable as error:
        if isinstance(error.__cause__, asyncpg.InvalidAuthorizationSpecificationError):
            user = urlsplit(settings.dsn).username
            raise PasswordRefused(
                f"PostgreSQL refuses the password of role {user!r}: its data was made with another one. Put back the Secret that belongs to the"
                " data, or, if the data may go, delete the database's PersistentVolumeClaim and install again"
            ) from error
        raise


def _tell(state: RetryCallState) -> None:
    """Every tenth attempt is enough to see in the log that it is waiting, and why."""
    if state.attempt_number % 10 == 1 and state.outcome is not None:
        _log.info("waiting for PostgreSQL", attempt=state.attempt_number, why=str(state.outcome.exception()))


@contextlib.asynccontextmanager
async def _alone(connection: Connection) -> AsyncIterator[None]:
    await _sql.lock(connection, key=_LOCK)
    try:
        yield
    finally:
        await _sql.unlock(connection, key=_LOCK)


async def ensure_owner(admin: Connection, *, owner: DatabaseSettings) -> None:
    """Make the owner and the database on a server of our own. The owner may make roles; it is no superuser."""
    where = urlsplit(owner.dsn)
    role, database = where.username or "", where.path.removeprefix("/")
    async with _alone(admin):
        await _ensure_role(admin, role, owner.password)
        await admin.execute(await _sql.allow_roles_statement(admin, role=role))
        if not await _sql.database_exists(admin, database=database):
            await admin.execute(await _sql.create_database_statement(admin, database=database, role=role))
            _log.info("database made", database=database)


async def ensure_roles(owner: Connection, *, passwords: Mapping[str, str]) -> None:
    """Give each part its login: roles by name, with their passwords. Nobody else may connect to the database."""
    async with _alone(owner):
        for role, password in passwords.items():
            await _ensure_role(owner, role, password)
        await owner.execute(await _sql.close_database_statement(owner))
        for role in passwords:
            await owner.execute(await _sql.allow_connect_statement(owner, role=role))
    _log.info("roles are set", roles=sorted(passwords))


async def _ensure_role(connection: Connection, role: str, password: str) -> None:
    if not await _sql.role_exists(connection, role=role):
        # The migrations make the roles without a login where they find none, and may run at this very moment.
        with contextlib.suppress(asyncpg.DuplicateObjectError, asyncpg.UniqueViolationError):
            await connection.execute(await _sql.create_role_statement(connection, role=role))
    await connection.execute(await _sql.set_password_statement(connection, role=role, verifier=verifier(password)))


def with_password(settings: DatabaseSettings, password: bytes) -> DatabaseSettings:
    """The same place, with the password that a Secret holds."""
    return dataclasses.replace(settings, password=password.decode())
