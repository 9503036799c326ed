"""A registry with its token service, and one image in a public distribution."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
import pytest_asyncio

from entrepot.settings import S3Settings
from tests import contents, services
from tests.conftest import Database, ObjectStore, Postgres, fresh_database
from tests.contents import Image
from tests.pushes import Pusher, pusher
from tests.services import Running


@dataclass
class Demo:
    """`demo/app`, served publicly: `latest` is an image with a small layer (inline) and a large one (in S3)."""

    running: Running
    repository: int
    distribution: UUID
    image: Image
    small: bytes
    large: bytes

    @property
    def small_digest(self) -> str:
        return contents.sha256(self.small)

    @property
    def large_digest(self) -> str:
        return contents.sha256(self.large)


@pytest.fixture
async def running(database: Database, s3: S3Settings, tmp_path: Path) -> AsyncIterator[Running]:
    async with services.running(database, s3, tmp_path / "keys") as started:
        yield started


async def fill(started: Running) -> Demo:
    small, large = bytes(range(256)) * 8, os.urandom(3 * 1024 * 1024 + 17)
    image = contents.image(small, large)
    repository = await contents.make_repository(started.owner)
    distribution = await contents.make_distribution(started.owner, repository)
    await contents.push(started.owner, repository, "latest", image, s3=started.store)
    return Demo(started, repository, distribution, image, small, large)


@pytest.fixture
async def demo(running: Running) -> Demo:
    return await fill(running)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    postgres: Postgres, template_database: str, object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    """One registry for all tests of a module, each of which has repositories of its own. The module's tests run in the module's loop."""
    async with (
        fresh_database(postgres, template_database) as database,
        services.running(database, object_store.settings(), tmp_path_factory.mktemp("shared") / "keys") as started,
    ):
        yield started


async def make_place(running: Running, name: str, *, access: str = "Private") -> int:
    """A repository that takes pushes, under a path of its own; gives its id."""
    repository = await contents.make_repository(running.owner, name=name.rpartition("/")[2])
    await contents.make_distribution(running.owner, repository, base_path=name, access=access)
    return repository


async def new_place(running: Running, *, access: str = "Private") -> str:
    """A repository that takes pushes; gives its name, which no other has."""
    name = f"demo/{secrets.token_hex(6)}"
    await make_place(running, name, access=access)
    return name


@pytest_asyncio.fixture(loop_scope="module")
async def one(shared: Running) -> Pusher:
    """A client with all rights on an empty repository of the shared registry."""
    return await pusher(shared, await new_place(shared))
