"""A registry with its token service, and one image in a public distribution."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from entrepot.settings import S3Settings
from tests import contents, services
from tests.conftest import Database
from tests.contents import Image
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
