"""What is served is what is true at the request; and what that costs in statements and calls to S3."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from entrepot.db.content import Change, Commit
from entrepot.settings import S3Settings
from entrepot_registry import lookups
from tests import contents, services
from tests.conftest import Database
from tests.contents import Image
from tests.integration.registry.conftest import Demo, fill
from tests.services import until


async def put(demo: Demo, tag: str, image: Image) -> int:
    await contents.push(demo.running.owner, demo.repository, tag, image, s3=demo.running.store)
    [number] = await contents.put(demo.running.owner, image)
    return number


async def change(demo: Demo, **what: object) -> Commit:
    return await contents.commit(demo.running.owner, demo.repository, Change(**what))  # type: ignore[arg-type]


async def statuses(demo: Demo, image: Image) -> list[int]:
    """Of the manifest by digest, then of each blob, by GET and by HEAD alike."""
    paths = [f"manifests/{image.digest}", *(f"blobs/{contents.sha256(blob)}" for blob in image.blobs)]
    found = [[(await demo.running.get(f"/v2/demo/app/{p}", method=m)).status for p in paths] for m in ("GET", "HEAD")]
    assert found[0] == found[1]
    return found[0]


async def age(demo: Demo, minutes: int) -> None:
    """Let time pass: everything happened earlier."""
    for column in ("version set created_at = created_at", "repository_blob set left_at = left_at"):
        await demo.running.owner.execute(f"update {column} - interval '{minutes} minutes'")


async def test_a_moved_tag_is_seen_at_the_next_request(demo: Demo) -> None:
    path = "/v2/demo/app/manifests/latest"
    for n in range(5):
        image = contents.image(b"layer %d" % n)
        await put(demo, "latest", image)
        assert (await demo.running.get(path)).body == image.body
        assert (await demo.running.head(path)).headers["Docker-Content-Digest"] == image.digest
    await change(demo, untag=["latest"])
    assert (await demo.running.get(path)).status == 404
    assert (await demo.running.get("/v2/demo/app/tags/list")).json()["tags"] == []


async def test_what_left_the_latest_version_is_served_by_digest_for_the_grace(demo: Demo) -> None:
    old = contents.image(b"an old layer")
    number = await put(demo, "old", old)
    await change(demo, untag=["old"], remove_manifests=[number])
    assert (await demo.running.get("/v2/demo/app/manifests/old")).status == 404
    assert await statuses(demo, old) == [200, 200, 200]
    await age(demo, 9)
    assert await statuses(demo, old) == [200, 200, 200]
    await age(demo, 2)
    assert await statuses(demo, old) == [404, 404, 404]


async def test_what_was_deleted_explicitly_is_gone_at_once(demo: Demo) -> None:
    old = contents.image(b"an old layer")
    number = await put(demo, "old", old)
    await change(demo, untag=["old"], remove_manifests=[number], withdrawn=True)
    assert await statuses(demo, old) == [404, 404, 404]


async def test_only_the_last_way_out_counts(demo: Demo) -> None:
    """Left by a sync, came back, deleted explicitly, all within the grace: gone."""
    old = contents.image(b"an old layer")
    number = await put(demo, "old", old)
    await change(demo, untag=["old"], remove_manifests=[number])
    await change(demo, add_manifests=[number])
    assert await statuses(demo, old) == [200, 200, 200]
    await change(demo, remove_manifests=[number], withdrawn=True)
    assert await statuses(demo, old) == [404, 404, 404]


async def test_a_blob_in_an_upload_is_there_and_a_hidden_one_is_not(demo: Demo) -> None:
    await contents.store(demo.running.owner, demo.repository, b"just uploaded")
    path = f"/v2/demo/app/blobs/{contents.sha256(b'just uploaded')}"
    assert (await demo.running.get(path)).body == b"just uploaded"
    await demo.running.owner.execute("update repository_blob set hidden = true where not named")
    assert (await demo.running.get(path)).status == 404


async def test_a_quarantined_or_not_yet_stored_blob_is_not_served(demo: Demo) -> None:
    path = f"/v2/demo/app/blobs/{demo.small_digest}"
    await demo.running.owner.execute("update blob set quarantined_at = now() where digest = $1", demo.small_digest)
    assert (await demo.running.get(path)).status == 404
    await demo.running.owner.execute(
        "update blob set quarantined_at = null, inline = null, size = null, stored_at = null where digest = $1",
        demo.small_digest,
    )
    assert (await demo.running.get(path)).status == 404
    assert (await demo.running.head(path)).status == 404


async def test_a_pinned_version_is_served_and_nothing_else(demo: Demo) -> None:
    newer = contents.image(b"a newer layer")
    [first] = await contents.put(demo.running.owner, demo.image)
    await put(demo, "latest", newer)
    await change(demo, remove_manifests=[first])
    await contents.store(demo.running.owner, demo.repository, b"just uploaded")
    await age(demo, 60)
    assert await statuses(demo, demo.image) == [404, 404, 404, 404]
    await demo.running.owner.execute("update distribution set pinned = 1")
    assert (await demo.running.get("/v2/demo/app/manifests/latest")).body == demo.image.body
    assert await statuses(demo, demo.image) == [200, 200, 200, 200]
    assert await statuses(demo, newer) == [404, 404, 404]
    assert (await demo.running.get(f"/v2/demo/app/blobs/{contents.sha256(b'just uploaded')}")).status == 404
    assert (await demo.running.get("/v2/demo/app/tags/list")).json()["tags"] == ["latest"]
    await demo.running.owner.execute("update repository_blob set hidden = true")
    assert await statuses(demo, demo.image) == [200, 200, 200, 200], "hiding does not reach into a pinned version"
    await demo.running.owner.execute("update distribution set pinned = 2")
    assert (await demo.running.get("/v2/demo/app/manifests/latest")).body == newer.body


async def test_pinned_tags_are_those_of_the_version(demo: Demo) -> None:
    await put(demo, "later", contents.image(b"another"))
    await change(demo, untag=["latest"])
    await demo.running.owner.execute("update distribution set pinned = 2")
    page = await demo.running.get("/v2/demo/app/tags/list?n=1")
    assert page.json()["tags"] == ["later"] or page.json()["tags"] == ["latest"]
    assert (await demo.running.get("/v2/demo/app/tags/list")).json()["tags"] == ["later", "latest"]
    await demo.running.owner.execute("update distribution set pinned = 3")
    assert (await demo.running.get("/v2/demo/app/tags/list")).json()["tags"] == ["later"]


async def test_what_requests_cost(demo: Demo) -> None:
    running = demo.running
    await running.bearer()

    async def cost(path: str, method: str = "GET") -> tuple[float, float]:
        reads = "entrepot_registry_storage_reads_total"
        before = (await running.statements(), await running.metric(reads))
        assert (await running.get(path, method=method)).status == 200
        return (await running.statements() - before[0], await running.metric(reads) - before[1])

    tag, digest = "/v2/demo/app/manifests/latest", f"/v2/demo/app/manifests/{demo.image.digest}"
    assert await cost(tag, "HEAD") == (1, 0)
    assert await cost(tag) == (2, 0), "cold: where it is, and its bytes"
    assert await cost(tag) == (1, 0)
    assert await cost(digest) == (1, 0)
    assert await cost(digest, "HEAD") == (1, 0)
    assert await cost(f"/v2/demo/app/blobs/{demo.small_digest}") == (1, 0)
    assert await cost(f"/v2/demo/app/blobs/{demo.large_digest}") == (1, 1)
    assert await cost(f"/v2/demo/app/blobs/{demo.large_digest}", "HEAD") == (1, 0)
    assert await cost("/v2/demo/app/tags/list") == (1, 0)
    before = await running.statements()
    await running.request("GET", tag)
    await running.request("GET", "/v2/")
    assert await running.statements() == before, "a challenge costs nothing"


async def test_lookups_go_on_while_their_plans_are_made_anew(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "_PLAN_LIFE", -1.0)
    path = "/v2/demo/app/manifests/latest"
    before = await demo.running.statements()
    for n in range(5):
        image = contents.image(b"layer %d" % n)
        await put(demo, "latest", image)
        assert (await demo.running.head(path)).headers["Docker-Content-Digest"] == image.digest
    assert await demo.running.statements() - before == 5


async def test_concurrent_lookups_share_statements(demo: Demo) -> None:
    running = demo.running
    headers = await running.bearer()
    await running.head("/v2/demo/app/manifests/latest")
    images = [contents.image(b"layer %d" % n) for n in range(20)]
    for n, image in enumerate(images):
        await put(demo, f"tag-{n}", image)
    before = await running.statements()
    # While the table is locked, the first two statements wait, and the others collect.
    async with running.owner.transaction():
        await running.owner.execute("lock table tag in access exclusive mode")
        tasks = [
            asyncio.create_task(running.request("HEAD", f"/v2/demo/app/manifests/tag-{n % 20}", headers=headers))
            for n in range(200)
        ]

        async def are_waiting() -> bool:
            return await running.metric("entrepot_registry_requests_in_flight") >= 90

        await until(are_waiting)
    answers = await asyncio.gather(*tasks)
    assert [a.headers["Docker-Content-Digest"] for a in answers] == [images[n % 20].digest for n in range(200)]
    assert await running.statements() - before <= 20


async def test_a_lookup_never_answers_with_what_was_true_before_it_was_asked(demo: Demo) -> None:
    """Readers all the time; after each commit the very next answer to a new request is the new one."""
    path, stop = "/v2/demo/app/manifests/latest", asyncio.Event()
    headers = await demo.running.bearer()

    async def read() -> int:
        count = 0
        while not stop.is_set():
            assert (await demo.running.request("HEAD", path, headers=headers)).status == 200
            count += 1
        return count

    readers = [asyncio.create_task(read()) for _ in range(16)]
    for n in range(25):
        image = contents.image(b"layer %d" % n)
        await put(demo, "latest", image)
        got = await asyncio.gather(*(demo.running.request("HEAD", path, headers=headers) for _ in range(4)))
        assert {answer.headers["Docker-Content-Digest"] for answer in got} == {image.digest}
    stop.set()
    assert sum(await asyncio.gather(*readers)) > 100


async def test_many_questions_of_all_kinds_at_once_get_each_its_own_answer(demo: Demo) -> None:
    headers = await demo.running.bearer()
    images = [contents.image(hashlib.sha256(b"%d" % n).digest() * 40) for n in range(30)]
    for n, image in enumerate(images):
        await put(demo, f"tag-{n}", image)

    async def one(n: int) -> None:
        image = images[n % 30]
        paths: Sequence[tuple[str, bytes | None]] = [
            (f"manifests/tag-{n % 30}", image.body),
            (f"manifests/{image.digest}", image.body),
            (f"blobs/{contents.sha256(image.layers[0])}", image.layers[0]),
            (f"manifests/absent-{n}", None),
            (f"blobs/{contents.sha256(b'absent %d' % n)}", None),
        ]
        for path, body in paths:
            got = await demo.running.request("GET", f"/v2/demo/app/{path}", headers=headers)
            assert (got.status, body if body is None else got.body) == (404 if body is None else 200, body)

    await asyncio.gather(*(one(n) for n in range(120)))


async def test_who_is_told_that_a_manifest_is_there_may_rely_on_it_for_a_while(demo: Demo) -> None:
    """HEAD counts as a use, written down only when the last one was a good while ago."""
    owner, path = demo.running.owner, f"/v2/demo/app/manifests/{demo.image.digest}"

    async def age_in_hours() -> int:
        hours: int = await owner.fetchval("select extract(epoch from now() - touched_at)::int / 3600 from manifest")
        return hours

    for hours, method, left in ((5, "HEAD", 5), (7, "GET", 7), (7, "HEAD", 0)):
        await owner.execute("update manifest set touched_at = now() - make_interval(hours => $1)", hours)
        before = await demo.running.statements()
        assert (await demo.running.get(path, method=method)).status == 200
        assert await age_in_hours() == left
        if method == "HEAD":
            assert await demo.running.statements() - before == (1 if left else 2)


async def test_a_warning_comes_with_every_manifest(database: Database, s3: S3Settings, tmp_path: Path) -> None:
    async with services.running(database, s3, tmp_path / "keys", warning='Down on "Friday" \\o/') as running:
        demo = await fill(running)
        for method in ("GET", "HEAD"):
            got = await running.get("/v2/demo/app/manifests/latest", method=method)
            assert got.headers["Warning"] == r'299 - "Down on \"Friday\" \\o/"'
        assert "Warning" not in (await running.get(f"/v2/demo/app/blobs/{demo.small_digest}")).headers
