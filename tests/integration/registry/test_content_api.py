"""The content API: versions, what they hold, how two differ, and sync runs; and that nobody sees more by it than by pulling."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import pytest

from entrepot.db.content import Change
from entrepot.oci import media_types
from tests import contents
from tests.contents import Image
from tests.services import Answer, Running

HISTORY = ("tags", "manifests", "blobs", "signatures")


def variant(label: str, *layers: bytes) -> Image:
    return contents.image(*layers, labels={"label": label})


A, B, C = (variant("a", b"base", b"a"), variant("b", b"base", b"b"), variant("c", b"c" * 100))
INDEX = contents.index(A, B)
ARTIFACT = contents.image(
    b"sbom",
    artifactType="application/spdx+json",
    subject=contents.descriptor(A.body, media_types.OCI_MANIFEST),
)


@dataclass
class Browsed:
    """`demo/app` follows the latest of six versions, `demo/pinned` serves the third, `demo/closed` is not public; all of one repository."""

    running: Running
    repository: int
    headers: dict[str, dict[str, str]] = field(default_factory=dict)

    async def request(
        self, path: str, *, at: str = "demo/app", anonymous: bool = False, method: str = "GET", **query: Any
    ) -> Answer:
        """A request as somebody, or as nobody."""
        who = f"{at} {anonymous}"
        if who not in self.headers:
            self.headers[who] = await (self.running.bearer(at) if anonymous else self.running.granted("pull", name=at))
        words = f"?{urlencode(query, doseq=True)}" if query else ""
        return await self.running.request(
            method, f"/extensions/entrepot/v1/{at}/{path}{words}", headers=self.headers[who]
        )

    async def get(self, path: str, **more: Any) -> Any:
        """The document of an answer that must be 200."""
        answer = await self.request(path, **more)
        assert answer.status == 200, answer.body
        assert answer.headers["Content-Type"] == "application/json"
        return answer.json()

    async def pages(self, path: str, kind: str, *, limit: int = 1, **more: Any) -> list[Any]:
        """All entries, a page at a time."""
        entries: list[Any] = []
        after: dict[str, str] = {}
        while True:
            document = await self.get(path, limit=limit, **after, **more)
            assert len(document[kind]) <= limit
            entries += document[kind]
            if "next" not in document:
                return entries
            after = {"after": document["next"]}


async def fill(running: Running) -> Browsed:
    owner = running.owner
    repository = await contents.make_repository(owner)
    for image in (A, B, C, ARTIFACT):
        await contents.store(owner, repository, *image.blobs)
    a, b, c, index, artifact = await contents.put(owner, A, B, C, INDEX, ARTIFACT)
    signature = await owner.fetchval(
        "insert into signature (digest, manifest, name, content) values ($1, $2, 'atomic one', '12345') returning id",
        contents.sha256(b"12345"),
        A.digest,
    )
    for change in (
        Change(tags={"one": a, "v1.0": a}, add_manifests=[a]),
        Change(tags={"two": b, "multi": index}, add_manifests=[b, index, artifact]),
        Change(tags={"one": c}, add_manifests=[c], add_signatures=[signature]),
        Change(untag=["two", "multi"], remove_manifests=[b, index]),
        Change(tags={"two": b}, add_manifests=[b], remove_signatures=[signature]),
        Change(untag=["v1.0"], tags={"one": b}, remove_manifests=[c, artifact]),
    ):
        await contents.commit(owner, repository, change)
    await contents.make_distribution(owner, repository)
    await contents.make_distribution(owner, repository, base_path="demo/pinned")
    await owner.execute("update distribution set pinned = 3 where base_path = 'demo/pinned'")
    await contents.make_distribution(owner, repository, base_path="demo/closed", access="Private")
    return Browsed(running, repository)


@pytest.fixture
async def browsed(running: Running) -> Browsed:
    return await fill(running)


async def test_versions_are_listed_newest_first_in_the_words_of_repositoryversion(browsed: Browsed) -> None:
    document = await browsed.get("versions")
    assert document.keys() == {"name", "versions"}
    assert document["name"] == "demo/app"
    assert [version["number"] for version in document["versions"]] == [6, 5, 4, 3, 2, 1]
    third = document["versions"][3]
    row = await browsed.running.owner.fetchrow("select created_at, size from version where number = 3")
    assert row is not None
    assert third == {
        "number": 3,
        "createdAt": row["created_at"].strftime("%Y-%m-%dT%H:%M:%SZ"),
        "baseVersion": 2,
        "cause": {"kind": "Test", "name": "test"},
        "isStep": False,
        "contentSummary": {
            "added": {"tags": 1, "manifests": 1, "blobs": 2, "signatures": 1},
            "removed": {"tags": 1, "manifests": 0, "blobs": 0, "signatures": 0},
            "present": {"tags": 4, "manifests": 5, "blobs": 9, "signatures": 1},
        },
        "size": row["size"],
    }
    assert "baseVersion" not in document["versions"][5]
    assert await browsed.get("versions/3") == {"name": "demo/app", **third}
    assert await browsed.get("versions/latest") == {"name": "demo/app", **document["versions"][0]}
    assert await browsed.pages("versions", "versions", limit=4) == document["versions"]
    assert (await browsed.get("versions", limit=6)).keys() == {"name", "versions"}


async def test_a_repository_without_a_version_has_an_empty_list(running: Running) -> None:
    browsed = Browsed(running, await contents.make_repository(running.owner))
    await contents.make_distribution(running.owner, browsed.repository)
    assert await browsed.get("versions") == {"name": "demo/app", "versions": []}
    assert await browsed.get("runs") == {"name": "demo/app", "runs": []}
    for path in ("versions/latest", "versions/1", "versions/latest/tags", "versions/1...latest"):
        answer = await browsed.request(path)
        assert (answer.status, answer.code) == (404, "VERSION_UNKNOWN"), path


async def test_what_a_version_holds_is_told_entry_by_entry(browsed: Browsed) -> None:
    tags = await browsed.get("versions/2/tags")
    assert tags == {
        "name": "demo/app",
        "version": 2,
        "tags": [
            {"name": "multi", "digest": str(INDEX.digest), "mediaType": INDEX.media_type, "kind": "index", "size": len(INDEX.body), "since": 2},
            {"name": "one", "digest": A.digest, "mediaType": A.manifest.media_type, "kind": "image", "size": len(A.body), "since": 1},
            {"name": "two", "digest": B.digest, "mediaType": B.manifest.media_type, "kind": "image", "size": len(B.body), "since": 2},
            {"name": "v1.0", "digest": A.digest, "mediaType": A.manifest.media_type, "kind": "image", "size": len(A.body), "since": 1},
        ],
    }  # fmt: skip
    manifests = {entry["digest"]: entry for entry in (await browsed.get("versions/2/manifests"))["manifests"]}
    assert set(manifests) == {A.digest, B.digest, str(INDEX.digest), ARTIFACT.digest}
    assert manifests[A.digest] == {
        "digest": A.digest, "mediaType": A.manifest.media_type, "kind": "image", "size": len(A.body), "since": 1,
        "platform": {"os": "linux", "architecture": "amd64"},
    }  # fmt: skip
    assert manifests[ARTIFACT.digest]["artifactType"] == "application/spdx+json"
    assert manifests[ARTIFACT.digest]["subject"] == A.digest
    assert "platform" not in manifests[str(INDEX.digest)]
    blobs = {entry["digest"]: entry for entry in (await browsed.get("versions/1/blobs"))["blobs"]}
    assert set(blobs) == {contents.sha256(blob) for blob in A.blobs}
    assert blobs[contents.sha256(b"base")] == {
        "digest": contents.sha256(b"base"), "mediaType": media_types.OCI_LAYER, "role": "layer", "size": 4,
    }  # fmt: skip
    assert blobs[contents.sha256(A.config)]["role"] == "config"
    assert (await browsed.get("versions/3/signatures"))["signatures"] == [
        {"digest": contents.sha256(b"12345"), "manifest": A.digest, "name": "atomic one", "size": 5, "since": 3}
    ]
    assert (await browsed.get("versions/latest/signatures")) == {"name": "demo/app", "version": 6, "signatures": []}


def key(kind: str, entry: dict[str, Any]) -> tuple[str, ...]:
    """What makes an entry the same as another; of a tag also where it points."""
    return (entry["name"], entry["digest"]) if kind == "tags" else (entry["digest"],)


async def content(browsed: Browsed, number: int, kind: str, **query: Any) -> set[tuple[str, ...]]:
    entries = await browsed.pages(f"versions/{number}/{kind}", kind, limit=100, **query)
    assert len(entries) == len({key(kind, entry) for entry in entries})
    return {key(kind, entry) for entry in entries}


@pytest.mark.parametrize("kind", HISTORY)
async def test_counts_and_changes_are_those_of_the_summary(browsed: Browsed, kind: str) -> None:
    before: set[tuple[str, ...]] = set()
    for number in range(1, 7):
        summary = (await browsed.get(f"versions/{number}"))["contentSummary"]
        now = await content(browsed, number, kind)
        added, removed = [await content(browsed, number, kind, change=change) for change in ("added", "removed")]
        assert (added, removed) == (now - before, before - now), number
        assert [len(found) for found in (added, removed, now)] == [
            summary[part][kind] for part in ("added", "removed", "present")
        ], number
        before = now


@pytest.mark.parametrize("kind", HISTORY)
async def test_pages_hold_each_entry_once_and_in_the_same_order(browsed: Browsed, kind: str) -> None:
    for number in range(1, 7):
        whole = (await browsed.get(f"versions/{number}/{kind}"))[kind]
        assert await browsed.pages(f"versions/{number}/{kind}", kind, limit=1) == whole
        assert await browsed.pages(f"versions/{number}/{kind}", kind, limit=2) == whole


async def test_filters_take_several_values_and_go_together(browsed: Browsed) -> None:
    async def names(**query: Any) -> list[str]:
        return [entry["name"] for entry in (await browsed.get("versions/2/tags", **query))["tags"]]

    assert await names(name=["one", "two", "none"]) == ["one", "two"]
    assert await names(digest=[A.digest]) == ["one", "v1.0"]
    assert await names(digest=[A.digest], name=["one"]) == ["one"]
    assert await names(mediaType=[INDEX.media_type]) == ["multi"]
    assert await names(change="added", name=["one", "two"]) == ["two"]
    manifests = await browsed.get(
        "versions/2/manifests", digest=[A.digest, B.digest], mediaType=[A.manifest.media_type]
    )
    assert {entry["digest"] for entry in manifests["manifests"]} == {A.digest, B.digest}
    configs = await browsed.get("versions/1/blobs", mediaType=[media_types.OCI_CONFIG])
    assert [entry["digest"] for entry in configs["blobs"]] == [contents.sha256(A.config)]
    assert (await browsed.get("versions/1/blobs", digest=[contents.sha256(b"b")]))["blobs"] == []
    assert len((await browsed.get("versions/3/signatures", digest=[A.digest], name=["atomic one"]))["signatures"]) == 1
    assert (await browsed.get("versions/3/signatures", digest=[C.digest]))["signatures"] == []
    assert (await browsed.get("versions/2/tags", change="added"))["baseVersion"] == 1
    assert (await browsed.get("versions/1/tags", change="removed"))["tags"] == []


def image_bytes(*images: Image) -> int:
    blobs = {blob for image in images for blob in image.blobs}
    return sum(len(image.body) for image in images) + sum(map(len, blobs))


async def test_a_comparison_tells_what_moved_with_digests_and_sizes(browsed: Browsed) -> None:
    document = await browsed.get("versions/1...3")
    assert (document["from"], document["to"]) == (1, 3)
    assert document["tags"] == [
        {"name": "multi", "change": "added", "newDigest": str(INDEX.digest), "newSize": len(INDEX.body) + image_bytes(A, B)},
        {"name": "one", "change": "moved", "oldDigest": A.digest, "oldSize": image_bytes(A), "newDigest": C.digest, "newSize": image_bytes(C)},
        {"name": "two", "change": "added", "newDigest": B.digest, "newSize": image_bytes(B)},
    ]  # fmt: skip
    new_manifests = [B.body, INDEX.body, ARTIFACT.body, C.body]
    new_blobs = {*B.blobs, *C.blobs, *ARTIFACT.blobs} - set(A.blobs)
    assert document["summary"] == {
        "tags": {"added": 2, "removed": 0, "moved": 1},
        "manifests": {"added": {"count": 4, "size": sum(map(len, new_manifests))}, "removed": {"count": 0, "size": 0}},
        "blobs": {
            "added": {"count": len(new_blobs), "size": sum(map(len, new_blobs))},
            "removed": {"count": 0, "size": 0},
        },
    }


async def test_any_two_versions_are_compared_as_their_contents_are(browsed: Browsed) -> None:
    held = {
        kind: {number: await content(browsed, number, kind) for number in range(1, 7)}
        for kind in ("manifests", "blobs")
    }
    tags: dict[int, dict[str, str]] = {}
    for number in range(1, 7):
        tags[number] = {
            entry["name"]: entry["digest"] for entry in (await browsed.get(f"versions/{number}/tags"))["tags"]
        }
    for a in range(1, 7):
        for b in range(1, 7):
            document = await browsed.get(f"versions/{a}...{b}")
            for kind, sets in held.items():
                counts = {change: entry["count"] for change, entry in document["summary"][kind].items()}
                assert counts == {"added": len(sets[b] - sets[a]), "removed": len(sets[a] - sets[b])}, (a, b, kind)
            found = [(e["name"], e.get("oldDigest"), e.get("newDigest")) for e in document["tags"]]
            names = sorted({*tags[a], *tags[b]})
            assert found == [(n, tags[a].get(n), tags[b].get(n)) for n in names if tags[a].get(n) != tags[b].get(n)], (
                a,
                b,
            )
            assert sum(document["summary"]["tags"].values()) == len(found)
            assert await browsed.pages(f"versions/{a}...{b}", "tags", limit=1) == document["tags"]
    last = await browsed.get("versions/latest...1", limit=1, after="one")
    assert (last["from"], last["to"], last["summary"].keys()) == (6, 1, {"tags"})


async def make_run(browsed: Browsed, **columns: Any) -> uuid.UUID:
    columns = {"finished_at": None, "outcome": None, "phase": "Queued", **columns}
    names = ["repository", "spec", "spec_hash", "trigger", *columns]
    places = ", ".join(f"${i + 1}" for i in range(len(names)))
    values = [browsed.repository, {"secret": "canary"}, "canary", "Scheduled", *columns.values()]
    made: uuid.UUID = await browsed.running.owner.fetchval(
        f"insert into sync_run ({', '.join(names)}) values ({places}) returning id", *values
    )
    return made


async def test_runs_are_listed_newest_first_with_what_failed(browsed: Browsed) -> None:
    owner = browsed.running.owner
    now = await owner.fetchval("select date_trunc('second', now())")
    failed = [{"tag": "v9", "reason": "UpstreamInvalid", "message": "the bytes are not those of the digest"}]
    runs = [
        await make_run(
            browsed, created_at=now, finished_at=now, started_at=now, phase="Finished", outcome="Partial", reason="UpstreamInvalid",
            message="1 of 5 tags could not be mirrored", version=number, added=3, removed=1, attempts=2, bytes_transferred=7,
            failed_tags=failed, failed_tag_count=1,
        )
        for number in (2, 3, 3)
    ]  # fmt: skip
    waiting = await make_run(browsed)
    document = await browsed.get("runs")
    assert [run["id"] for run in document["runs"]] == [str(waiting), *sorted(map(str, runs), reverse=True)]
    assert document["runs"][0].keys() == {
        "id", "trigger", "createdAt", "attempts", "phase", "added", "removed", "bytesTransferred", "failedTags", "failedTagCount",
    }  # fmt: skip
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    [second] = [run for run in document["runs"] if run["id"] == str(runs[0])]
    assert second == {
        "id": str(runs[0]), "trigger": "Scheduled", "createdAt": stamp, "startedAt": stamp, "finishedAt": stamp, "attempts": 2,
        "phase": "Finished", "outcome": "Partial", "reason": "UpstreamInvalid", "message": "1 of 5 tags could not be mirrored", "version": 2,
        "added": 3, "removed": 1, "bytesTransferred": 7, "failedTags": failed, "failedTagCount": 1,
    }  # fmt: skip
    assert "canary" not in json.dumps(document)
    assert await browsed.pages("runs", "runs") == document["runs"]
    pinned = await browsed.get("runs", at="demo/pinned")
    assert {run["id"] for run in pinned["runs"]} == set(map(str, runs[1:])), "those that made what is served there"
    answer = await browsed.request("runs", anonymous=True)
    assert (answer.status, answer.code) == (403, "DENIED")
    assert (await browsed.get("runs", after=str(uuid.uuid4())))["runs"] == []


async def test_nobody_in_particular_sees_what_is_served_and_nothing_else(browsed: Browsed) -> None:
    document = await browsed.get("versions", anonymous=True)
    assert [version["number"] for version in document["versions"]] == [6]
    for number in ("6", "latest"):
        assert (await browsed.get(f"versions/{number}", anonymous=True))["number"] == 6
        tags = await browsed.get(f"versions/{number}/tags", anonymous=True)
        assert {tag["name"] for tag in tags["tags"]} == {"one", "two"}
    assert (await browsed.get("versions/latest/tags", change="added", anonymous=True))["tags"][0]["name"] == "one"
    for path in ("versions/5", "versions/5/tags", "versions/1/manifests", "versions/5...6", "versions/6...1"):
        answer = await browsed.request(path, anonymous=True)
        assert (answer.status, answer.code) == (404, "VERSION_UNKNOWN"), path
    for kind in HISTORY:
        answer = await browsed.request(f"versions/6/{kind}", change="removed", anonymous=True)
        assert (answer.status, answer.code) == (403, "DENIED"), kind


@pytest.mark.parametrize("anonymous", [True, False])
async def test_a_pinned_name_shows_its_version_to_everybody_and_no_other_to_anybody(
    browsed: Browsed, anonymous: bool
) -> None:
    def of(path: str, **more: Any) -> dict[str, Any]:
        return {"path": path, "at": "demo/pinned", "anonymous": anonymous, **more}

    assert [v["number"] for v in (await browsed.get(**of("versions")))["versions"]] == [3]
    assert (await browsed.get(**of("versions/latest")))["number"] == 3
    assert len((await browsed.get(**of("versions/latest/tags")))["tags"]) == 4
    assert (await browsed.get(**of("versions/3...3")))["tags"] == []
    for number in (1, 2, 4, 6):
        for path in (
            f"versions/{number}",
            f"versions/{number}/tags",
            f"versions/3...{number}",
            f"versions/{number}...3",
        ):
            answer = await browsed.request(**of(path))
            assert (answer.status, answer.code) == (404, "VERSION_UNKNOWN"), path
    answer = await browsed.request(**of("versions/3/tags", change="removed"))
    assert (answer.status, answer.code) == (403, "DENIED")


PATHS = ("versions", "versions/1", "versions/1/tags", "versions/1/blobs", "versions/1...2", "runs")


async def test_the_right_to_pull_is_needed(browsed: Browsed) -> None:
    for path in PATHS:
        await refused_without_the_right(browsed, path)


async def refused_without_the_right(browsed: Browsed, path: str) -> None:
    running = browsed.running
    url = f"/extensions/entrepot/v1/demo/closed/{path}"
    for headers in (
        {},
        await running.bearer("demo/closed"),
        await running.granted("push", "delete", name="demo/closed"),
        await running.granted("pull", name="demo/app"),
        await running.granted("pull", name="demo/closed", subject=""),
    ):
        answer = await running.request("GET", url, headers=headers)
        assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
        assert 'scope="repository:demo/closed:pull"' in answer.headers["WWW-Authenticate"]
    assert (await browsed.request(path, at="demo/closed")).status == 200
    assert (await browsed.request(path, at="r/demo/app")).status == 200


async def test_a_name_that_stands_for_nothing_any_more_is_not_found(browsed: Browsed) -> None:
    headers = await browsed.running.granted("pull", name="demo/closed")
    await browsed.running.owner.execute("delete from distribution where base_path = 'demo/closed'")
    for path in PATHS:
        answer = await browsed.running.request("GET", f"/extensions/entrepot/v1/demo/closed/{path}", headers=headers)
        assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("versions", {"tag": "one"}, "UNSUPPORTED"),
    ("versions", {"name": "one"}, "UNSUPPORTED"),
    ("versions", {"limit": "0"}, "PAGINATION_NUMBER_INVALID"),
    ("versions", {"limit": "-1"}, "PAGINATION_NUMBER_INVALID"),
    ("versions", {"limit": "ten"}, "PAGINATION_NUMBER_INVALID"),
    ("versions", {"limit": "9" * 40}, "PAGINATION_NUMBER_INVALID"),
    ("versions", {"limit": ["1", "2"]}, "UNSUPPORTED"),
    ("versions", {"after": "one"}, "PAGINATION_NUMBER_INVALID"),
    ("versions/1", {"limit": "1"}, "UNSUPPORTED"),
    ("versions/0", {}, "VERSION_INVALID"),
    ("versions/one", {}, "VERSION_INVALID"),
    ("versions/01", {}, "VERSION_INVALID"),
    ("versions/" + "9" * 19, {}, "VERSION_INVALID"),
    ("versions/1/tags", {"change": "moved"}, "UNSUPPORTED"),
    ("versions/1/tags", {"change": ["added", "removed"]}, "UNSUPPORTED"),
    ("versions/1/tags", {"digest": "sha256:abc"}, "DIGEST_INVALID"),
    ("versions/1/tags", {"name": ""}, "UNSUPPORTED"),
    ("versions/1/tags", {"name": "\0"}, "UNSUPPORTED"),
    ("versions/1/tags", {"after": "\0"}, "PAGINATION_NUMBER_INVALID"),
    ("versions/1/tags", {"name": [str(i) for i in range(101)]}, "UNSUPPORTED"),
    ("versions/1/manifests", {"name": "one"}, "UNSUPPORTED"),
    ("versions/1/manifests", {"after": "one"}, "PAGINATION_NUMBER_INVALID"),
    ("versions/1/signatures", {"mediaType": "text/plain"}, "UNSUPPORTED"),
    ("versions/1...2...3", {}, "VERSION_INVALID"),
    ("versions/1...", {}, "VERSION_INVALID"),
    ("versions/1....2", {}, "VERSION_INVALID"),
    ("versions/1...2", {"name": "one"}, "UNSUPPORTED"),
    ("runs", {"after": "one"}, "PAGINATION_NUMBER_INVALID"),
    ("runs", {"outcome": "Failed"}, "UNSUPPORTED"),
]


async def test_what_cannot_be_meant_is_refused_with_a_sentence(browsed: Browsed) -> None:
    for path, query, code in REFUSED:
        answer = await browsed.request(path, **query)
        assert (answer.status, answer.code) == (400, code), (path, query, answer.body)


async def test_other_methods_and_places_are_told_apart(browsed: Browsed) -> None:
    answer = await browsed.request("versions", method="DELETE")
    assert (answer.status, answer.code, answer.headers["Allow"]) == (405, "UNSUPPORTED", "GET, HEAD")
    for path in ("versions/1/layers", "version", "versions/1/tags/one", ""):
        assert (await browsed.request(path)).status == 404, path
    whole = await browsed.request("versions/latest/tags")
    head = await browsed.request("versions/latest/tags", method="HEAD")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(whole.body)))


async def test_each_request_is_one_statement(browsed: Browsed) -> None:
    running = browsed.running
    for path, statement in [
        ("versions", "list_versions"),
        ("versions/1", "find_version"),
        *((f"versions/1/{kind}", "list_content") for kind in HISTORY),
        ("versions/1...6", "compare_versions"),
        ("runs", "list_runs"),
    ]:
        sample = rf'entrepot_registry_database_statements_total\{{statement="{statement}"'
        before, one = await running.statements(), await running.metric(sample)
        await browsed.get(path)
        assert (await running.statements(), await running.metric(sample)) == (before + 1, one + 1), path


async def test_no_request_is_a_5xx_whatever_it_asks(browsed: Browsed) -> None:
    for path in ("versions", "versions/latest/tags", "versions/latest/blobs", "versions/1...latest", "runs"):
        for raw in (
            "after=%00",
            "after=%ff",
            "limit=%F0%9F%92%A9",
            "name=%00",
            "digest=%00",
            "&&&",
            "=",
            "limit",
            "after=" + "x" * 600,
            "%",
            "a=%zz",
        ):
            answer = await browsed.running.request(
                "GET",
                f"/extensions/entrepot/v1/demo/app/{path}?{raw}",
                headers=await browsed.running.granted("pull", name="demo/app"),
            )
            assert answer.status in {200, 400}, (path, raw, answer.body)
