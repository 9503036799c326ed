"""The content API over 50,000 tags and 100 versions: every statement finds its rows by index, and pages stay cheap."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from entrepot.db import browse as db
from entrepot.db.browse import ContentQuery
from entrepot.db.pool import connect
from tests import contents
from tests.conftest import Database

TAGS, VERSIONS, MOVED = 50_000, 100, 500
"""Each version but the first moves other tags. Every manifest names a config, a layer of its own, and a base that all have in common."""

FILL = f"""
set session_replication_role = replica;
insert into version (
    repository, number, base, cause_kind, cause_name, added_tags, removed_tags, added_manifests, removed_manifests, added_blobs, removed_blobs,
    added_signatures, removed_signatures, tags, manifests, indexes, blobs, signatures, size
) select 1, n, n - 1, 'Test', 'test', 0, 0, 0, 0, 0, 0, 0, 0, {TAGS}, {TAGS}, 0, 0, 0, 1 from generate_series(1, {VERSIONS}) n;
update repository set latest = {VERSIONS}, last_number = {VERSIONS} where id = 1;
insert into tag (repository, name, manifest, added, removed)
    select 1, 't' || lpad(n::text, 5, '0'), n + 1, 1, case when n % {VERSIONS} > 0 then {VERSIONS} + 1 - n % {VERSIONS} end
    from generate_series(0, {TAGS} - 1) n;
insert into tag (repository, name, manifest, added)
    select 1, 't' || lpad(n::text, 5, '0'), {TAGS} + ({VERSIONS - 1} - n % {VERSIONS}) * {MOVED} + n / {VERSIONS} + 1, {VERSIONS} + 1 - n % {VERSIONS}
    from generate_series(0, {TAGS} - 1) n where n % {VERSIONS} > 0;
insert into repository_manifest (repository, manifest, added, removed) select repository, manifest, added, removed from tag order by manifest;
insert into manifest (digest, media_type, kind, size, body)
    select 'sha256:' || lpad(n::text, 64, '0'), 'application/vnd.oci.image.manifest.v1+json', 'image', 1, 'x' from generate_series(1, {2 * TAGS}) n;
insert into blob (digest) select 'sha256:b' || lpad(n::text, 63, '0') from generate_series(0, {4 * TAGS + 1}) n;
insert into manifest_blob (manifest, position, blob, role, media_type, size)
    select m, p, case p when 1 then 1 else 2 * m + p / 2 end, case p when 0 then 'config' else 'layer' end, 'text/plain', 1
    from generate_series(1, {2 * TAGS}) m, generate_series(0, 2) p;
insert into repository_blob (repository, blob, size, in_any, named)
    select 1, e.blob, 1, count(*), true from repository_manifest r join manifest_blob e on e.manifest = r.manifest group by e.blob order by e.blob;
analyze;
"""
LARGE = {"tag", "manifest", "manifest_blob", "repository_manifest", "repository_blob", "blob"}
WHOLE = {"manifest_blob", "repository_manifest", "repository_blob"}
"""What may be read from end to end where the blobs of whole versions are compared: here they are nearly all that there is."""
SECONDS = 15.0
"""Of a machine that does other things as well; the setting's limit is 20."""


def scans(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """How each table of a plan is read."""
    if "Relation Name" in node:
        yield node["Node Type"], node["Relation Name"]
    for child in node.get("Plans", ()):
        yield from scans(child)


class Explaining:
    """A connection that keeps its last statement, to explain it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._last: tuple[Any, ...] = ()

    async def fetch(self, *statement: Any) -> Any:
        self._last = statement
        return await self._connection.fetch(*statement)

    async def sequential(self) -> set[str]:
        """Large tables that the last statement read from end to end."""
        text, *values = self._last
        plan = json.loads(await self._connection.fetchval(f"explain (format json) {text}", *values))[0]["Plan"]
        return {table for kind, table in scans(plan) if kind == "Seq Scan" and table in LARGE}


def content(kind: str, **more: Any) -> ContentQuery:
    return ContentQuery(kind=kind, after=more.pop("after", "" if kind == "tags" else 0), count=101, **more)


@pytest.mark.timeout(600)
async def test_every_statement_finds_its_rows_by_index(database: Database) -> None:
    owner = await connect(database.settings(), application="test")
    assert await contents.make_repository(owner) == 1
    await contents.make_distribution(owner, 1)
    await owner.execute(FILL, timeout=300)
    connection = await connect(database.settings("registry"), application="test")
    registry: Any = Explaining(connection)

    async def timed(asked: Any, *, whole: bool = False) -> Any:
        begun = time.perf_counter()
        found = await asked
        assert time.perf_counter() - begun < SECONDS
        assert await registry.sequential() <= (WHOLE if whole else set())
        return found

    def listed(query: ContentQuery) -> Any:
        changed_blobs = query.kind == "blobs" and query.change is not None
        return timed(db.list_content(registry, "demo/app", query, history=True), whole=changed_blobs)

    for number in (None, 50):
        for kind in ("tags", "manifests", "blobs"):
            assert len((await listed(content(kind, number=number))).rows) == 101
            for change in ("added", "removed"):
                assert len((await listed(content(kind, number=number, change=change))).rows) == 101
        deep = await listed(content("tags", number=number, after="t49900"))
        assert [row["name"] for row in deep.rows] == [f"t{n}" for n in range(49_901, 50_000)]
        assert len((await listed(content("tags", number=number, names=["t00007"]))).rows) == 1
        assert len((await listed(content("manifests", number=number, digests=[f"sha256:{1:064}"]))).rows) == 1
    _, versions = await timed(db.list_versions(registry, "demo/app", history=True, after=None, count=1001))
    assert len(versions) == VERSIONS

    def compared(a: int, b: int, after: str = "") -> Any:
        asked = db.compare_versions(registry, "demo/app", history=True, a=a, b=b, after=after, count=101)
        return timed(asked, whole=True)

    near = await compared(50, 51)
    assert (near.counts["tags_moved"], near.counts["manifests_added"], near.counts["blobs_added"]) == (500, 500, 1000)
    far = await compared(1, 100)
    assert (far.counts["tags_moved"], far.counts["manifests_removed"], far.counts["blobs_removed"]) == (
        49_500,
        49_500,
        99_000,
    )
    assert (await compared(1, 100, after="t30000")).rows[0]["name"] == "t30001"
    await owner.close()
    await connection.close()
