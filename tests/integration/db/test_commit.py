"""The one commit function: what it makes, what it refuses, and that history never changes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entrepot.db import content
from entrepot.db.content import Change, LedgerEntry
from entrepot.db.pool import Connection, connect
from entrepot.errors import BlobNotInRepository, ManifestNotInRepository, RepositoryGone, StillReferenced, VersionMoved
from tests import contents
from tests.conftest import Database
from tests.contents import commit, image, make_repository, push, put, store


@pytest.fixture
async def owner(database: Database) -> AsyncIterator[Connection]:
    connection = await connect(database.settings(), application="test")
    yield connection
    await connection.close()


async def tags_at(owner: Connection, repository: int, number: int) -> dict[str, int]:
    rows = await owner.fetch(
        "select name, manifest from tag where repository = $1 and added <= $2 and (removed is null or removed > $2)",
        repository,
        number,
    )
    return {row["name"]: row["manifest"] for row in rows}


async def manifests_at(owner: Connection, repository: int, number: int) -> set[int]:
    rows = await owner.fetch(
        "select manifest from repository_manifest where repository = $1 and added <= $2 and (removed is null or removed > $2)",
        repository, number,
    )  # fmt: skip
    return {row["manifest"] for row in rows}


async def summary(owner: Connection, repository: int, number: int) -> dict[str, int]:
    row = await owner.fetchrow("select * from version where repository = $1 and number = $2", repository, number)
    assert row is not None
    return dict(row)


async def test_a_first_image_makes_version_1_with_true_counts(owner: Connection) -> None:
    repository = await make_repository(owner)
    one = image(b"layer", b"another")
    await push(owner, repository, "latest", one)
    row = await summary(owner, repository, 1)
    assert (row["base"], row["tags"], row["manifests"], row["indexes"], row["blobs"]) == (0, 1, 1, 0, 3)
    assert (row["added_tags"], row["added_manifests"], row["added_blobs"]) == (1, 1, 3)
    assert row["size"] == len(one.body) + sum(map(len, one.blobs))


async def test_an_index_counts_as_a_manifest_too(owner: Connection) -> None:
    repository = await make_repository(owner)
    await push(owner, repository, "multi", image(b"a"), image(b"b", architecture="arm64"))
    row = await summary(owner, repository, 1)
    assert (row["manifests"], row["indexes"], row["blobs"]) == (3, 1, 4)


async def test_what_changes_nothing_makes_no_version(owner: Connection) -> None:
    repository = await make_repository(owner)
    await push(owner, repository, "latest", image(b"layer"))
    [manifest] = await put(owner, image(b"layer"))
    again = await commit(
        owner, repository, Change(tags={"latest": manifest}, add_manifests=[manifest], untag=["absent"])
    )
    assert (again.outcome, again.version) == ("NoChange", None)
    assert await owner.fetchval("select count(*) from version") == 1


async def test_a_moved_tag_counts_as_one_added_and_one_removed(owner: Connection) -> None:
    repository = await make_repository(owner)
    await push(owner, repository, "latest", image(b"one"))
    await push(owner, repository, "latest", image(b"two"))
    row = await summary(owner, repository, 2)
    assert (row["added_tags"], row["removed_tags"], row["tags"], row["manifests"]) == (1, 1, 1, 2)
    assert (await tags_at(owner, repository, 1)) != (await tags_at(owner, repository, 2))


async def test_the_same_ledger_entry_is_never_applied_twice(owner: Connection) -> None:
    repository = await make_repository(owner)
    await store(owner, repository, *image(b"x").blobs)
    [manifest] = await put(owner, image(b"x"))
    entry = LedgerEntry("ContentChange", "change", "hash")
    change = Change(tags={"a": manifest}, add_manifests=[manifest])
    first = await commit(owner, repository, change, ledger=entry)
    await commit(owner, repository, Change(untag=["a"]))
    again = await commit(owner, repository, change, ledger=entry)
    assert (first.outcome, first.version) == ("Changed", 1)
    assert (again.outcome, again.version) == ("AlreadyApplied", 1)
    assert await tags_at(owner, repository, 2) == {}


async def test_a_manifest_may_name_only_blobs_linked_to_its_repository(owner: Connection) -> None:
    repository = await make_repository(owner)
    elsewhere = await make_repository(owner, namespace="other")
    await store(owner, elsewhere, *image(b"secret").blobs)
    [manifest] = await put(owner, image(b"secret"))
    with pytest.raises(BlobNotInRepository, match="is not in the repository"):
        await commit(owner, repository, Change(add_manifests=[manifest]))
    assert await owner.fetchval("select latest from repository where id = $1", repository) == 0


async def test_a_tag_may_point_only_at_a_manifest_of_its_repository(owner: Connection) -> None:
    repository = await make_repository(owner)
    [manifest] = await put(owner, image(b"x"))
    with pytest.raises(ManifestNotInRepository, match="tag a"):
        await commit(owner, repository, Change(tags={"a": manifest}))


async def test_what_is_tagged_or_listed_is_not_removed(owner: Connection) -> None:
    repository = await make_repository(owner)
    one, two = image(b"a"), image(b"b", architecture="arm64")
    await push(owner, repository, "multi", one, two)
    first, _, both = await put(owner, one, two, contents.index(one, two))
    with pytest.raises(StillReferenced, match=one.digest):
        await commit(owner, repository, Change(remove_manifests=[first]))
    with pytest.raises(StillReferenced):
        await commit(owner, repository, Change(remove_manifests=[both]))
    done = await commit(owner, repository, Change(untag=["multi"], remove_manifests=[both, first]))
    assert done.outcome == "Changed"


async def test_a_change_for_another_base_is_refused(owner: Connection) -> None:
    repository = await make_repository(owner)
    await push(owner, repository, "latest", image(b"x"))
    with pytest.raises(VersionMoved, match="latest version is 1, not 7"):
        await commit(owner, repository, Change(untag=["latest"], base=7))


async def test_a_deleted_repository_takes_no_commit(owner: Connection) -> None:
    repository = await make_repository(owner)
    await owner.execute("update repository set deleted_at = now(), purge_after = now()")
    with pytest.raises(RepositoryGone):
        await commit(owner, repository, Change(untag=["x"]))


async def test_numbers_never_go_back(owner: Connection) -> None:
    repository = await make_repository(owner)
    await owner.execute("update repository set last_number = 41 where id = $1", repository)
    await push(owner, repository, "latest", image(b"x"))
    assert await owner.fetchval("select latest from repository where id = $1", repository) == 42


async def test_concurrent_commits_follow_one_another(database: Database, owner: Connection) -> None:
    repository = await make_repository(owner)
    await store(owner, repository, *image(b"x").blobs)
    [manifest] = await put(owner, image(b"x"))

    async def tag(number: int) -> None:
        connection = await connect(database.settings(), application="test")
        await commit(connection, repository, Change(tags={f"t{number}": manifest}, add_manifests=[manifest]))
        await connection.close()

    await asyncio.gather(*(tag(n) for n in range(10)))
    rows = await owner.fetch("select number, tags, base from version order by number")
    assert [(r["number"], r["tags"], r["base"]) for r in rows] == [(n, n, n - 1) for n in range(1, 11)]


async def test_the_syncer_may_commit_and_the_registry_may_not(database: Database, owner: Connection) -> None:
    repository = await make_repository(owner)
    await store(owner, repository, *image(b"x").blobs)
    [manifest] = await put(owner, image(b"x"))
    syncer = await connect(database.settings("syncer"), application="test")
    assert (await commit(syncer, repository, Change(add_manifests=[manifest]))).version == 1
    await syncer.close()
    registry = await connect(database.settings("registry"), application="test")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await commit(registry, repository, Change(remove_manifests=[manifest]))
    await registry.close()


async def test_the_first_writer_of_a_blob_keeps_its_bytes(owner: Connection) -> None:
    first, second = await content.begin_objects(owner, owner="test", count=2)
    digest = contents.sha256(b"x" * 100_000)
    for key in (first, second):
        await content.store_blobs(owner, [content.StoredBlob(digest=digest, size=100_000, object_key=key)])
    assert await owner.fetchval("select object_key from blob") == first
    left = await owner.fetch("select key, delete_after is not null as doomed from object")
    assert [(row["key"], row["doomed"]) for row in left] == [(second, True)]


async def test_the_body_is_kept_to_the_byte(owner: Connection) -> None:
    repository = await make_repository(owner)
    odd = image(b"x", annotations={"plain": "ü", "surrogate pair": "\N{PACKAGE}"}, labels={"a": "ü"})
    await push(owner, repository, "latest", odd)
    assert await owner.fetchval("select body from manifest") == odd.body


IMAGES = [image(bytes([65 + n]), b"shared", architecture=f"a{n}") for n in range(5)]
OPERATIONS = st.lists(
    st.fixed_dictionaries(
        {
            "tags": st.dictionaries(st.sampled_from("abcd"), st.integers(0, 4), max_size=3),
            "untag": st.lists(st.sampled_from("abcd"), max_size=2),
            "add": st.sets(st.integers(0, 4), max_size=3),
            "remove": st.sets(st.integers(0, 4), max_size=2),
        }
    ),
    max_size=12,
)


@pytest.mark.allow_blocking
def test_every_version_reads_later_as_it_was_made(template_database: str, database: Database) -> None:
    """For any sequence of changes: versions equal a model's, summaries equal recounts, counters equal their meaning."""

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(OPERATIONS)
    def holds(operations: list[dict[str, object]]) -> None:
        asyncio.run(_check_history(database, operations))

    holds()


async def _check_history(database: Database, operations: list[dict[str, object]]) -> None:
    owner = await connect(database.settings(), application="test")
    try:
        repository = await make_repository(owner, namespace=uuid.uuid4().hex)
        await store(owner, repository, *(blob for one in IMAGES for blob in one.blobs))
        ids = await put(owner, *IMAGES)
        tags: dict[str, int] = {}
        members: set[int] = set()
        history: dict[int, tuple[dict[str, int], set[int]]] = {}
        for operation in operations:
            wanted_tags = {name: ids[n] for name, n in operation["tags"].items()}  # type: ignore[attr-defined]
            add = {ids[n] for n in operation["add"]} | set(wanted_tags.values())  # type: ignore[attr-defined]
            remove = {ids[n] for n in operation["remove"]} - add  # type: ignore[attr-defined]
            new_tags = {k: v for k, v in tags.items() if k not in operation["untag"]} | wanted_tags  # type: ignore[operator]
            remove -= set(new_tags.values())
            new_members = (members | add) - remove
            done = await commit(
                owner,
                repository,
                Change(
                    tags=wanted_tags,
                    untag=operation["untag"],  # type: ignore[arg-type]
                    add_manifests=sorted(add),
                    remove_manifests=sorted(remove),
                ),
            )
            assert (done.outcome == "NoChange") == ((new_tags, new_members) == (tags, members))
            tags, members = new_tags, new_members
            if done.version is not None:
                history[done.version] = (dict(tags), set(members))
        for number, (then_tags, then_members) in history.items():
            assert await tags_at(owner, repository, number) == then_tags
            assert await manifests_at(owner, repository, number) == then_members
            row = await summary(owner, repository, number)
            blobs = await owner.fetch(
                "select distinct blob from manifest_blob where manifest = any ($1)", list(then_members)
            )
            assert (row["tags"], row["manifests"], row["blobs"]) == (len(then_tags), len(then_members), len(blobs))
            before_tags, before_members = history.get(row["base"], ({}, set()))
            assert row["added_manifests"] == len(then_members - before_members)
            assert row["removed_manifests"] == len(before_members - then_members)
            assert row["added_tags"] == len(then_tags.items() - before_tags.items())
            assert row["removed_tags"] == len(before_tags.items() - then_tags.items())
        wrong = await owner.fetch(
            """
            select l.blob from repository_blob l where l.repository = $1 and (
                l.in_latest <> (select count(distinct e.manifest) from manifest_blob e
                    join repository_manifest m on m.manifest = e.manifest and m.repository = $1 and m.removed is null where e.blob = l.blob)
                or l.in_any <> (select count(distinct e.manifest) from manifest_blob e
                    join repository_manifest m on m.manifest = e.manifest and m.repository = $1 where e.blob = l.blob))
            """,
            repository,
        )
        assert wrong == []
    finally:
        await owner.close()


async def test_storing_and_linking_the_same_blobs_in_other_orders_never_deadlocks(
    database: Database, owner: Connection
) -> None:
    """Two namespaces mirror the same images at once: one stores blobs, by digest, that the other links and names, by id."""
    blobs = [f"{number}".encode() for number in range(300)]
    stored = [content.StoredBlob(digest=contents.sha256(data), size=len(data), inline=data) for data in blobs]
    sizes = {blob.digest: blob.size for blob in stored}
    for blob in stored:  # one by one, so that ids and digests are in different orders
        await content.store_blobs(owner, [blob])
    repositories = [await make_repository(owner, name=f"r{number}") for number in range(60)]
    syncers = [await connect(database.settings("syncer"), application="test") for _ in range(2)]

    async def link() -> None:
        for repository in repositories:
            await content.link_blobs(syncers[0], repository, sizes=sizes)

    async def store_again() -> None:
        for _ in range(60):
            await content.store_blobs(syncers[1], stored)

    await asyncio.gather(link(), store_again())
    assert await owner.fetchval("select count(*) from repository_blob") == 60 * 300
    for connection in syncers:
        await connection.close()


async def test_damaged_bytes_are_replaced_by_the_next_writers(owner: Connection) -> None:
    first, second = await content.begin_objects(owner, owner="test", count=2)
    digest = contents.sha256(b"x" * 100_000)
    await content.store_blobs(owner, [content.StoredBlob(digest=digest, size=100_000, object_key=first)])
    await owner.execute("update blob set quarantined_at = now()")
    await content.store_blobs(owner, [content.StoredBlob(digest=digest, size=100_000, object_key=second)])
    row = await owner.fetchrow("select object_key, quarantined_at from blob")
    assert row is not None
    assert (row["object_key"], row["quarantined_at"]) == (second, None)


async def sign(owner: Connection, manifest: str, content_: bytes) -> int:
    made: int = await owner.fetchval(
        "insert into signature (digest, manifest, name, content) values ($1, $2, 'name', $3) returning id", contents.sha256(content_), manifest, content_
    )  # fmt: skip
    return made


async def signatures_at(owner: Connection, repository: int, number: int) -> set[int]:
    rows = await owner.fetch(
        "select signature from repository_signature where repository = $1 and added <= $2 and (removed is null or removed > $2)",
        repository, number,
    )  # fmt: skip
    return {row["signature"] for row in rows}


async def test_signatures_go_with_the_manifest_they_sign_and_with_no_other(owner: Connection) -> None:
    repository, elsewhere = [await make_repository(owner, name=name) for name in ("app", "other")]
    one, two = image(b"1"), image(b"2")
    for where in (repository, elsewhere):
        await push(owner, where, "one", one)
        await push(owner, where, "two", two)
    [first, second] = await put(owner, one, two)
    signed = [
        await sign(owner, one.digest, b"a"),
        await sign(owner, one.digest, b"b"),
        await sign(owner, two.digest, b"a"),
    ]
    for where in (repository, elsewhere):
        await commit(owner, where, Change(add_signatures=signed))
    await commit(owner, repository, Change(untag=["one"], remove_manifests=[first]))
    assert await signatures_at(owner, repository, 3) == set(signed)
    assert await signatures_at(owner, repository, 4) == {signed[2]}
    assert await signatures_at(owner, elsewhere, 4) == set(signed)
    row = await summary(owner, repository, 4)
    assert (row["signatures"], row["removed_signatures"]) == (1, 2)
    await commit(owner, repository, Change(remove_signatures=[signed[2]]))
    assert await signatures_at(owner, repository, 5) == set()
    assert await manifests_at(owner, repository, 5) == {second}


async def test_only_an_explicit_delete_takes_a_manifest_out_of_an_index(owner: Connection) -> None:
    repository = await make_repository(owner)
    one, two = image(b"a"), image(b"b", architecture="arm64")
    await push(owner, repository, "multi", one, two)
    [first] = await put(owner, one)
    with pytest.raises(StillReferenced):
        await commit(owner, repository, Change(remove_manifests=[first]))
    done = await commit(owner, repository, Change(remove_manifests=[first], withdrawn=True))
    assert (done.outcome, done.version) == ("Changed", 2)
    [both] = await put(owner, contents.index(one, two))
    with pytest.raises(StillReferenced):
        await commit(owner, repository, Change(remove_manifests=[both], withdrawn=True))


async def test_of_pushes_in_quick_succession_all_but_the_last_are_steps(owner: Connection) -> None:
    repository = await make_repository(owner)

    async def made(kind: str, number: int) -> None:
        one = image(b"%d" % number)
        await store(owner, repository, *one.blobs)
        [manifest] = await put(owner, one)
        change = Change(tags={"latest": manifest}, add_manifests=[manifest])
        await content.commit(owner, repository, change=change, cause=content.Cause(kind, "latest"))

    for number, kind in enumerate(("Sync", "Push", "Push", "Sync", "Push", "Push"), start=1):
        if number == 6:
            await owner.execute("update version set created_at = created_at - interval '11 minutes' where number = 5")
        await made(kind, number)
    rows = await owner.fetch("select number from version where is_step")
    assert [row["number"] for row in rows] == [2]


async def test_a_foreign_layer_that_is_linked_late_is_counted(owner: Connection) -> None:
    repository = await make_repository(owner)
    foreign = contents.descriptor(
        b"far", "application/vnd.oci.image.layer.nondistributable.v1.tar", urls=["https://example.test"]
    )
    images = [image(b"near", layers=[foreign], annotations={"n": str(n)}) for n in range(3)]
    await store(owner, repository, images[0].config)
    ids = await put(owner, *images)
    await commit(owner, repository, Change(add_manifests=ids))
    await commit(owner, repository, Change(remove_manifests=ids[:1]))
    await store(owner, repository, b"far")

    async def counters() -> tuple[int, int, bool]:
        row = await owner.fetchrow(
            "select in_latest, in_any, named from repository_blob l join blob b on b.id = l.blob where digest = $1",
            contents.sha256(b"far"),
        )
        assert row is not None
        return row["in_latest"], row["in_any"], row["named"]

    assert await counters() == (2, 3, True)
    await store(owner, repository, b"far")
    assert await counters() == (2, 3, True), "a link that is there is not counted again"
    await commit(owner, repository, Change(remove_manifests=ids[1:]))
    assert await counters() == (0, 3, True)
