"""The two commands, each a sequence of steps that may be repeated at any time.

Both come in two halves: reading settings and files, before the event loop runs, and the work.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from entrepot.blobs.store import open_store
from entrepot.db.migrate import migrate
from entrepot.errors import StorageUnavailable
from entrepot.settings import DatabaseSettings, S3Settings, load
from entrepot_setup.api import open_api
from entrepot_setup.crds import apply_crds, check_claim, read_crds
from entrepot_setup.errors import SetupFailed
from entrepot_setup.generate import PARTS, wanted_secrets
from entrepot_setup.roles import ensure_owner, ensure_roles, role_of, wait_for_database, with_password
from entrepot_setup.secret_objects import ensure_secret
from entrepot_setup.settings import AdminSettings, InstallSettings, SetupSettings

__all__ = ["install", "make_bucket", "migrate_schema"]

Command: TypeAlias = Callable[[SetupSettings], Coroutine[Any, Any, None]]


def install() -> Command:
    """Definitions, Secrets, roles, bucket: in this order, since the pods of the release wait for the Secrets."""
    settings = load(InstallSettings)
    crds = read_crds(settings.crd_dir)
    owner = load(DatabaseSettings)
    admin_dsn = load(AdminSettings).admin_dsn
    s3 = load(S3Settings)

    async def run(setup: SetupSettings) -> None:
        who = {"namespace": settings.namespace, "release": settings.release}
        contents: dict[str, dict[str, bytes]] = {}
        async with open_api() as api:
            await check_claim(api, crds, **who)
            await apply_crds(api, crds, **who)
            for wanted in wanted_secrets(settings):
                contents[wanted.name] = await ensure_secret(api, wanted, **who)
        passwords = contents[settings.database_secret]
        keys = contents[settings.storage_secret]
        await _set_roles(setup, owner, passwords, admin_dsn=admin_dsn)
        await make_bucket(
            setup,
            dataclasses.replace(
                s3, access_key_id=keys["access-key-id"].decode(), secret_access_key=keys["secret-access-key"].decode()
            ),
        )

    return run


async def _set_roles(
    setup: SetupSettings, owner: DatabaseSettings, passwords: dict[str, bytes], *, admin_dsn: str
) -> None:
    owner = with_password(owner, passwords["owner-password"])
    seconds = setup.setup_timeout.total_seconds()
    if admin_dsn:
        admin = await wait_for_database(
            with_password(dataclasses.replace(owner, dsn=admin_dsn), passwords["postgres-password"]), seconds=seconds
        )
        try:
            await ensure_owner(admin, owner=owner)
        finally:
            await admin.close()
    connection = await wait_for_database(owner, seconds=seconds)
    try:
        await ensure_roles(
            connection, passwords={role_of(part): passwords[f"{part}-password"].decode() for part in PARTS}
        )
    finally:
        await connection.close()


async def make_bucket(setup: SetupSettings, s3: S3Settings) -> None:
    """Make the bucket if it is absent, as soon as S3 answers. Raises SetupFailed where it does not in time."""
    seconds = setup.setup_timeout.total_seconds()
    attempts = AsyncRetrying(
        stop=stop_after_delay(seconds),
        wait=wait_fixed(1),
        retry=retry_if_exception_type(StorageUnavailable),
        reraise=True,
    )
    try:
        async with open_store(s3) as store:
            await attempts(store.ensure_bucket)
    except StorageUnavailable as error:
        raise SetupFailed(
            f"bucket {s3.bucket!r} at {s3.endpoint} cannot be had within {seconds:.0f} s: {error}"
        ) from error


def migrate_schema() -> Command:
    """Bring the database to the schema of this release, as its owner."""
    owner = load(DatabaseSettings)

    async def run(setup: SetupSettings) -> None:
        # At a first install this starts together with the set-up Job, which makes the owner.
        connection = await wait_for_database(owner, seconds=setup.setup_timeout.total_seconds(), password_may_come=True)
        await connection.close()
        await migrate(owner)

    return run
