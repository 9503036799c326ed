"""Layers that manifests may name before they are linked: the sums of every version are those of what it names and the repository has."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entrepot.db import uploads
from entrepot.db.content import Change
from entrepot.db.pool import Connection, connect
from entrepot.errors import StillReferenced
from entrepot.oci import media_types
from tests import contents
from tests.conftest import Database
from tests.contents import Image, commit, image, make_distribution, make_repository, put, sha256, store


@pytest.fixture
async def owner(database: Database) -> AsyncIterator[Connection]:
    connection = await connect(database.settings(), application="test")
    yield connection
    await connection.close()


FOREIGN = [b"far", b"farther", b"farthest"]


def naming(number: int, *foreign: bytes) -> Image:
    """An image with a layer of everybody's, one of its own, and foreign ones."""
    layers = [
        contents.descriptor(data, media_types.OCI_NONDISTRIBUTABLE_LAYER, urls=["https://example.test"])
        for data in foreign
    ]
    made = image(b"shared", b"own %d" % number, architecture=f"a{number}")
    near = [contents.descriptor(data, media_types.OCI_LAYER) for data in made.layers]
    return image(*made.layers, architecture=f"a{number}", layers=[*near, *layers])


IMAGES = [naming(0, *FOREIGN[:1]), naming(1, *FOREIGN[:2]), naming(2, *FOREIGN[1:]), naming(3)]
NUMBERS = st.sets(st.integers(0, len(IMAGES) - 1), max_size=2)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), NUMBERS, NUMBERS),
        st.tuples(st.sampled_from(["link", "push", "mount", "hide"]), st.sampled_from(FOREIGN)),
    ),
    max_size=16,
)

RECOUNT = """
    with named as (
        select distinct e.blob, x.added <= v.number and (x.removed is null or x.removed > v.number) as is_here,
            x.added <= v.base and (x.removed is null or x.removed > v.base) as was_here
        from version v
        join repository_manifest x on x.repository = v.repository
        join manifest_blob e on e.manifest = x.manifest
        where v.repository = $1 and v.number = $2
    ), linked as (
        select l.blob, l.size, bool_or(n.is_here) as is_here, bool_or(n.was_here) as was_here
        from named n join repository_blob l on l.repository = $1 and l.blob = n.blob
        group by l.blob, l.size
    )
    select count(*) filter (where is_here) as blobs,
        count(*) filter (where is_here and not was_here) as added_blobs,
        count(*) filter (where was_here and not is_here) as removed_blobs,
        coalesce(sum(size) filter (where is_here), 0) + (
            select coalesce(sum(m.size), 0) from repository_manifest x join manifest m on m.id = x.manifest
            where x.repository = $1 and x.added <= $2 and (x.removed is null or x.removed > $2)
        ) as size
    from linked
"""


async def check(owner: Connection, repository: int, number: int) -> None:
    """What a version that was just made says of its blobs equals a recount."""
    columns = (
        "select blobs, added_blobs, removed_blobs, size::numeric from version where repository = $1 and number = $2"
    )
    told = await owner.fetchrow(columns, repository, number)
    assert told is not None
    assert dict(told) == dict(await owner.fetchrow(RECOUNT, repository, number) or ())


@pytest.mark.allow_blocking
def test_the_sums_of_every_version_equal_a_recount(template_database: str, database: Database) -> None:
    """For any sequence of commits, and of layers that come before, after and while manifests name them, in every way."""

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(OPERATIONS)
    def holds(operations: list[tuple[Any, ...]]) -> None:
        asyncio.run(_check(database, operations))

    holds()


async def _check(database: Database, operations: list[tuple[Any, ...]]) -> None:
    owner = await connect(database.settings(), application="test")
    try:
        namespace = uuid.uuid4().hex
        repository = await make_repository(owner, namespace=namespace)
        source = await make_repository(owner, namespace=namespace, name="source")
        await make_distribution(owner, source, base_path=f"{namespace}/source", namespace=namespace)
        await store(owner, source, *FOREIGN)
        await store(owner, repository, *(blob for one in IMAGES for blob in one.blobs))
        ids = await put(owner, *IMAGES)
        # In the end all goes, and nothing is left in the sums.
        everything = set(range(len(ids)))
        for kind, *arguments in [*operations, ("commit", {0}, set()), ("commit", set(), everything)]:
            if kind == "commit":
                add, remove = (sorted(ids[n] for n in numbers) for numbers in arguments)
                change = Change(add_manifests=add, remove_manifests=sorted({*remove} - {*add}), withdrawn=True)
                done = await commit(owner, repository, change)
                if done.version is not None:
                    await check(owner, repository, done.version)
            else:
                await _bring(owner, repository, kind, arguments[0])
        last = await owner.fetchrow(
            "select blobs, size from version where repository = $1 order by number desc", repository
        )
        assert last is not None
        assert (last["blobs"], last["size"]) == (0, 0)
    finally:
        await owner.close()


async def _bring(owner: Connection, repository: int, kind: str, data: bytes) -> None:
    """A layer comes to a repository, by one of the ways, or is taken from it if nothing names it."""
    digest = sha256(data)
    if kind == "link":
        await store(owner, repository, data)
    elif kind == "push":
        await uploads.store_pushed_blob(owner, repository, digest=digest, size=len(data), inline=data)
    elif kind == "mount":
        assert await uploads.mount_blob(
            owner, repository, digest=digest, source=None, readable={}, namespaces=[], grace=timedelta(minutes=10)
        )
    else:
        try:
            await uploads.hide_blob(owner, repository, digest=digest)
        except StillReferenced:
            assert await owner.fetchval(
                "select bool_or(in_latest > 0) from repository_blob where repository = $1", repository
            )


async def test_a_layer_that_comes_late_is_in_the_sums_from_the_next_version_on(owner: Connection) -> None:
    repository = await make_repository(owner)
    await store(owner, repository, *IMAGES[0].blobs)
    [manifest, other] = await put(owner, IMAGES[0], image(b"own 0", labels={"other": ""}))
    await store(owner, repository, *image(b"own 0", labels={"other": ""}).blobs)
    await commit(owner, repository, Change(add_manifests=[manifest]))
    await uploads.store_pushed_blob(owner, repository, digest=sha256(b"far"), size=3, inline=b"far")
    await check_blobs(owner, repository, 3)
    await commit(owner, repository, Change(add_manifests=[other]))
    await check_blobs(owner, repository, 5)
    await check(owner, repository, 2)
    await commit(owner, repository, Change(remove_manifests=[manifest]))
    await check_blobs(owner, repository, 2)
    await check(owner, repository, 3)


async def check_blobs(owner: Connection, repository: int, blobs: int) -> None:
    told = "select blobs from version where repository = $1 order by number desc limit 1"
    assert await owner.fetchval(told, repository) == blobs
