"""How PostgreSQL goes about the statements of every request where there is much of everything: by index, whatever plan it keeps."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from entrepot.db import uploads
from entrepot.db.pool import Connection, connect, queries
from tests.conftest import Database
from tests.contents import make_repository

MANY = 50_000
DIGEST = f"sha256:{'0' * 64}"


# Without half a million checks of references that are right by construction.
FILL = f"""
set session_replication_role = replica;
insert into repository (namespace, name, resource_uid) select 'demo', 'app-' || n, gen_random_uuid() from generate_series(1, {MANY} - 1) n;
insert into base_path_claim (path, namespace, distribution) select 'demo/' || name, 'demo', gen_random_uuid() from repository;
insert into distribution (uuid, namespace, name, base_path, repository, access)
    select c.distribution, 'demo', r.name, c.path, r.id, case when r.id % 2 = 0 then 'Public' else 'Private' end
    from repository r join base_path_claim c on c.path = 'demo/' || r.name;
insert into manifest (digest, media_type, kind, size, body, subject)
    select 'sha256:' || encode(sha256(n::text::bytea), 'hex'), 'x', 'image', 1, 'x', 'sha256:' || encode(sha256((n % 5000)::text::bytea), 'hex')
    from generate_series(1, {MANY}) n;
insert into repository_manifest (repository, manifest, added) select 1, id, 1 from manifest;
insert into tag (repository, name, manifest, added) select 1, 't' || id, id, 1 from manifest;
insert into blob (digest, size, inline, stored_at) select digest, 1, 'x', now() from manifest;
insert into repository_blob (repository, blob, size, in_latest, in_any, named) select 1, id, 1, 1, 1, true from blob;
insert into manifest_blob (manifest, position, blob, role, media_type, size)
    select m.id, 0, b.id, 'config', 'x', 1 from manifest m join blob b on b.digest = m.digest;
insert into manifest_child (parent, position, digest) select id, 0, digest from manifest;
insert into signature (digest, manifest, name, content) select digest, digest, 'x', 'x' from manifest;
insert into repository_signature (repository, signature, added) select 1, id, 1 from signature;
"""


@pytest.fixture
async def owner(database: Database) -> AsyncIterator[Connection]:
    """50,000 repositories with a distribution each, 50,000 tags and manifests in the first, 50,000 referrers and signatures."""
    connection = await connect(database.settings(), application="test")
    await make_repository(connection, name="app-0")
    await connection.execute(FILL)
    await connection.execute("analyze")
    yield connection
    await connection.close()


GRACE, FRESH = timedelta(minutes=10), timedelta(hours=6)
ARGUMENTS: dict[tuple[str, str], list[Any]] = {
    ("registry", "find_manifests"): [
        FRESH,
        ["demo/app-0"] * 8,
        ["t7"] * 4 + [None] * 4,
        [None] * 4 + [DIGEST] * 4,
        [False] * 8,
        GRACE,
    ],
    ("registry", "find_blobs"): [["demo/app-0"] * 8, [DIGEST] * 8, [True] * 8, FRESH, GRACE],
    ("registry", "manifest_bodies"): [[DIGEST] * 8],
    ("registry", "list_tags"): ["demo/app-0", "t7", 101],
    ("manifests", "find_pushes"): [["demo/app-0", "r/demo/app-0"], [DIGEST, None]],
    ("manifests", "find_referrers"): ["demo/app-0", DIGEST, "sha256-" + "0" * 64, "", [], 101, 2**20],
    ("manifests", "find_signatures"): ["demo/app-0", DIGEST, GRACE, 32],
    ("manifests", "touch_manifests"): [[DIGEST]],
    ("manifests", "list_catalog"): ["demo/app-1", True, False, ["demo"], 101],
    ("uploads", "find_targets"): [["demo/app-0", "r/demo/app-0", "absent"]],
    ("uploads", "find_uploads"): [["demo/app-0"], ["x"], ["somebody"]],
}


def scans(plan: dict[str, Any]) -> list[str]:
    """Tables read from one end to the other, anywhere in a plan."""
    found = [str(plan["Relation Name"])] if plan["Node Type"] == "Seq Scan" else []
    return found + [name for part in plan.get("Plans", ()) for name in scans(part)]


def literal(value: Any) -> str:
    """A value as SQL writes it."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return "'{" + ",".join("null" if item is None else str(item).lower() for item in value) + "}'"
    if isinstance(value, str):
        return f"'{value}'"
    return f"'{value.total_seconds()} s'" if isinstance(value, timedelta) else str(value).lower()


@pytest.mark.allow_blocking
async def test_no_request_reads_a_table_from_one_end_to_the_other(owner: Connection) -> None:
    wrong: dict[str, list[str]] = {}
    for (part, name), arguments in ARGUMENTS.items():
        sql: str = getattr(queries(part), name).sql
        values = ", ".join(map(literal, arguments))
        await owner.execute(f"prepare {name} as {sql}")
        for mode in ("force_generic_plan", "force_custom_plan"):
            await owner.execute(f"set plan_cache_mode = {mode}")
            plan = await owner.fetchval(f"explain (format json) execute {name} ({values})")
            # Empty here, and small as long as nothing is amiss.
            found = [table for table in scans(json.loads(plan)[0]["Plan"]) if table not in {"upload", "version"}]
            if found:
                wrong[f"{part}.{name} ({mode})"] = found
    assert wrong == {}


SHARED = f"sha256:{'5' * 64}"
# A blob that 20,000 private distributions have, beside 25,000 public ones that do not have it.
SPREAD = f"""
insert into blob (digest, size, inline, stored_at) values ('{SHARED}', 1, 'x', now());
insert into repository_blob (repository, blob, size)
    select d.repository, b.id, 1 from distribution d join blob b on b.digest = '{SHARED}'
    where d.access = 'Private' order by d.repository limit 20000;
insert into repository_blob (repository, blob, size)
    select max(l.repository), b.id, 1 from repository_blob l join blob b on b.digest = '{DIGEST}' group by b.id;
analyze repository_blob, blob;
"""


def rows(plan: dict[str, Any]) -> list[float]:
    """How many rows each part of a plan read, in all of its loops."""
    read = sum(plan.get(kind, 0) for kind in ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck"))
    return [read * plan["Actual Loops"], *(count for part in plan.get("Plans", ()) for count in rows(part))]


@pytest.mark.allow_blocking
async def test_a_mount_without_a_source_is_bounded_and_finds_what_few_have_or_few_may_read(owner: Connection) -> None:
    await owner.execute("insert into blob (digest, size, inline, stored_at) values ($1, 1, 'x', now())", DIGEST)
    await owner.execute(SPREAD)
    target = await owner.fetchval("select min(repository) from distribution where access = 'Public'")
    names, strangers = [f"demo/app-{n}" for n in range(1, 9)], [str(UUID(int=0))] * 8
    await owner.execute(f"prepare mount_blob as {queries('uploads').mount_blob.sql}")
    for digest in (SHARED, DIGEST, f"sha256:{'6' * 64}"):
        values = ", ".join(map(literal, [digest, names, strangers, None, ["other"], GRACE, target]))
        for mode in ("force_generic_plan", "force_custom_plan"):
            await owner.execute(f"set plan_cache_mode = {mode}")
            explained = await owner.fetchval(f"explain (analyze, format json) execute mount_blob ({values})")
            plan = json.loads(explained)[0]["Plan"]
            assert max(rows(plan)) <= 2000, (digest, mode)
            assert scans(plan) == [], (digest, mode)

    async def mounted(digest: str, namespace: str) -> bool:
        return await uploads.mount_blob(
            owner, target, digest=digest, source=None, readable={}, namespaces=[namespace], grace=GRACE
        )

    last = "(select max(repository) from repository_blob l join blob b on b.id = l.blob where b.digest = $1)"
    assert not await mounted(SHARED, "other")
    await owner.execute(f"update distribution set namespace = 'few' where repository = {last}", SHARED)
    assert await mounted(SHARED, "few"), "many have it, and few may be read"
    await owner.execute(f"update distribution set access = 'Private' where repository = {last}", DIGEST)
    assert not await mounted(DIGEST, "other")
    await owner.execute(f"update distribution set access = 'Public' where repository = {last}", DIGEST)
    assert await mounted(DIGEST, "other"), "few have it, and many may be read"
