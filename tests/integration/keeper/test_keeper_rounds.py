"""What a round ends, marks and removes; and what it never touches."""

from __future__ import annotations

import uuid
from datetime import timedelta

import pytest

from entrepot.errors import StorageUnavailable
from tests.integration.keeper.conftest import Ward


async def test_an_upload_that_was_left_alone_ends_with_all_its_bytes(ward: Ward) -> None:
    first = await ward.begin("upload/upload-1", write=False)
    multipart = await ward.multipart(first)
    tail = await ward.begin("upload/upload-1")
    await ward.upload(object_key=first, multipart=multipart, tail_key=tail, offset=70_000)
    await ward.upload("upload-2", tail=b"few", offset=3)
    await ward.round()
    assert await ward.uploads() == set()
    assert await ward.on_record() == set()
    assert not ward.in_bucket(tail)
    assert await ward.open_multiparts() == 0
    assert ward.counted("uploads_expired_total") == 2
    assert ward.counted("uploads_expired_bytes_total") == 70_003
    assert ward.counted("objects_removed_total") == 2


async def test_a_multipart_upload_that_only_the_upload_knows_of_is_aborted_too(ward: Ward) -> None:
    key = await ward.begin("upload/upload-1", write=False)
    multipart = await ward.multipart(key)
    await ward.owner.execute("update object set upload_id = null")
    await ward.upload(object_key=key, multipart=multipart)
    await ward.round()
    assert await ward.open_multiparts() == 0


async def test_an_upload_that_is_in_use_stays(ward: Ward) -> None:
    key = await ward.begin("upload/upload-1")
    await ward.upload(idle="23 hours", tail_key=key)
    await ward.round()
    assert (await ward.uploads(), await ward.on_record(), ward.in_bucket(key)) == ({"upload-1"}, {key}, True)


async def test_an_upload_that_is_being_written_stays_however_long_that_takes(ward: Ward) -> None:
    await ward.upload("alive", writer="a request")
    await ward.upload("dead", writer="another")
    await ward.owner.execute("update upload set writer_until = now() + interval '5 seconds' where id = 'alive'")
    await ward.owner.execute("update upload set writer_until = now() - interval '1 second' where id = 'dead'")
    await ward.round()
    assert await ward.uploads() == {"alive"}


async def test_objects_that_a_registry_reserved_long_ago_go(ward: Ward) -> None:
    old = await ward.begin("registry/one", age="49 hours")
    young = await ward.begin("registry/one", age="47 hours")
    await ward.round()
    assert await ward.on_record() == {young}
    assert (ward.in_bucket(old), ward.in_bucket(young)) == (False, True)
    assert ward.counted("objects_abandoned_total") == 1


async def test_objects_of_a_sync_run_go_once_it_has_ended(ward: Ward) -> None:
    active = await ward.begin(f"sync/{await ward.sync_run()}", age="30 days")
    ended = await ward.begin(f"sync/{await ward.sync_run(finished=True)}")
    gone = await ward.begin(f"sync/{uuid.uuid4()}")
    multipart = await ward.begin(f"sync/{uuid.uuid4()}", write=False)
    await ward.multipart(multipart)
    await ward.round()
    assert await ward.on_record() == {active}
    assert [ward.in_bucket(key) for key in (active, ended, gone)] == [True, False, False]
    assert await ward.open_multiparts() == 0


async def test_objects_of_an_upload_go_once_it_is_none_any_more(ward: Ward) -> None:
    await ward.upload("alive", idle="1 hour")
    kept = await ward.begin("upload/alive", age="30 days")
    orphan = await ward.begin("upload/ended")
    await ward.round()
    assert await ward.on_record() == {kept}
    assert not ward.in_bucket(orphan)


async def test_deleting_a_repository_leaves_no_upload_behind(ward: Ward) -> None:
    key = await ward.begin("upload/upload-1")
    await ward.upload(idle="0", tail_key=key)
    await ward.owner.execute("delete from repository")
    await ward.round()
    assert (await ward.on_record(), ward.in_bucket(key)) == (set(), False)


async def test_objects_of_owners_it_does_not_know_stay_until_somebody_gives_them_up(ward: Ward) -> None:
    kept = await ward.begin("import/1", age="30 days")
    given_up = await ward.begin("import/1", marked="0")
    await ward.round()
    assert await ward.on_record() == {kept}
    assert not ward.in_bucket(given_up)


@pytest.mark.parametrize("owner", ["registry/one", "sync/no-such-run", "upload/no-such-upload"])
@pytest.mark.parametrize("marked", [None, "1 hour"])
async def test_an_object_that_a_blob_points_at_is_never_touched(ward: Ward, owner: str, marked: str | None) -> None:
    key = await ward.begin(owner, age="30 days", marked=marked)
    await ward.point(key)
    await ward.round()
    assert await ward.on_record() == {key}
    assert ward.in_bucket(key)
    assert ward.counted("objects_abandoned_total") == 0


async def test_an_expired_uploads_object_that_a_blob_points_at_is_never_touched(ward: Ward) -> None:
    key = await ward.begin("upload/upload-1")
    await ward.point(key)
    await ward.upload(tail_key=key)
    await ward.round()
    assert await ward.uploads() == set()
    assert ward.in_bucket(key)


@pytest.mark.parametrize("marked", [None, "1 hour"])
async def test_a_live_uploads_objects_are_never_touched_whoever_is_said_to_own_them(
    ward: Ward, marked: str | None
) -> None:
    parts = await ward.begin("registry/one", age="30 days", marked=marked)
    tail = await ward.begin("registry/one", age="30 days", marked=marked)
    await ward.upload("one", idle="0", object_key=parts, multipart="m")
    await ward.upload("two", idle="0", tail_key=tail)
    await ward.round()
    assert await ward.on_record() == {parts, tail}
    assert (ward.in_bucket(parts), ward.in_bucket(tail)) == (True, True)


async def test_an_object_is_removed_only_after_the_delay(ward: Ward) -> None:
    key = await ward.begin("registry/one", age="49 hours")
    later = await ward.begin("import/1", marked="-1 hour")
    await ward.round(removal_delay=timedelta(hours=1))
    assert await ward.on_record() == {key, later}
    assert ward.counted("objects_waiting") == 2
    await ward.owner.execute("update object set delete_after = delete_after - interval '1 hour' where key = $1", key)
    await ward.round(removal_delay=timedelta(hours=1))
    assert await ward.on_record() == {later}
    assert (ward.in_bucket(key), ward.in_bucket(later)) == (False, True)


async def test_more_than_a_batch_is_done_in_one_round(ward: Ward) -> None:
    for number in range(7):
        key = await ward.begin(f"upload/u{number}")
        await ward.upload(f"u{number}", tail_key=key)
    for _ in range(7):
        await ward.begin("registry/one", age="49 hours")
    await ward.round(batch=3)
    assert (await ward.uploads(), await ward.on_record()) == (set(), set())
    assert ward.counted("objects_removed_total") == 14


async def test_a_round_is_bounded_and_the_next_one_does_the_rest(ward: Ward) -> None:
    for _ in range(5):
        await ward.begin("registry/one", age="49 hours")
    await ward.round(batch=2, batches=1)
    assert (len(await ward.on_record()), ward.counted("objects_waiting")) == (3, 0)
    await ward.round(batch=2, batches=1)
    await ward.round(batch=2, batches=1)
    assert await ward.on_record() == set()


async def test_what_is_gone_already_counts_as_removed(ward: Ward) -> None:
    never_written = await ward.begin("registry/one", age="49 hours", write=False)
    aborted = await ward.begin("registry/one", age="49 hours", write=False)
    multipart = await ward.multipart(aborted)
    await ward.store.abort(aborted, multipart)
    assert await ward.on_record() == {never_written, aborted}
    await ward.round()
    assert await ward.on_record() == set()


async def test_an_object_that_s3_holds_on_to_does_not_keep_the_others(ward: Ward) -> None:
    # S3 refuses to remove the one and to abort the other.
    stuck = await ward.begin("import/1", key="k" * 1500, write=False, marked="0")
    refused = await ward.begin("import/1", key="..", write=False, marked="0")
    await ward.owner.execute("update object set upload_id = 'none' where key = $1", refused)
    others = [await ward.begin("import/1", marked="0") for _ in range(5)]
    with_multipart = await ward.begin("import/1", marked="0", write=False)
    await ward.multipart(with_multipart)
    await ward.round(batch=3)
    assert await ward.on_record() == {stuck, refused}
    assert not any(ward.in_bucket(key) for key in others)
    assert await ward.open_multiparts() == 0
    assert ward.counted("failures_total", what="object") == 2
    assert ward.counted("objects_waiting") == 2


async def test_where_s3_is_away_the_round_is_broken_off_and_nothing_is_forgotten(ward: Ward) -> None:
    keys = {await ward.begin("registry/one", age="49 hours") for _ in range(3)}
    multipart = await ward.begin("registry/one", age="49 hours")
    await ward.multipart(multipart)
    ward.server.stop()
    try:
        with pytest.raises(StorageUnavailable):
            await ward.round()
    finally:
        ward.server.start()
    assert await ward.on_record() == keys | {multipart}
    await ward.round()
    assert await ward.on_record() == set()
    assert await ward.open_multiparts() == 0
