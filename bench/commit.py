"""What a commit costs as a repository grows: WAL bytes and buffers touched by moving 10 tags among 500 and among 50,000.

The two repositories lie in one database and commits alternate between them. What the commit itself writes is compared with
`full_page_writes` off: with it on, the first change of a page after a checkpoint logs the whole page, so the sum depends on when the
last checkpoint was and on how many pages ten random names hit (all there are, of 500). That is printed too, for a commit right after
a checkpoint, the worst case. Exits with 1 when the larger repository costs over 1.5 times the smaller.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
from typing import Any, TypeAlias

import asyncpg

from entrepot.db.migrate import migrate
from entrepot.db.pool import connect
from entrepot.settings import DatabaseSettings
from tests.contents import image, make_repository, put, store
from tests.servers import running_postgres

LIMIT = 1.5

Repositories: TypeAlias = dict[int, tuple[int, list[int]]]
Costs: TypeAlias = dict[int, list[float]]


async def fill(connection: asyncpg.Connection[Any], name: str, tags: int) -> tuple[int, list[int]]:
    """A repository of so many tags on 100 manifests; gives its id and the manifests' ids."""
    repository = await make_repository(connection, name=name)
    images = [image(f"{name}-{n}".encode(), b"shared") for n in range(100)]
    await store(connection, repository, *(blob for one in images for blob in one.blobs))
    ids = await put(connection, *images)
    names = [f"v{n // 100}.{n % 100}.{n % 7}-{n}" for n in range(tags)]
    await connection.execute(
        "select commit_content($1, 'Bench', '', $2, $3, '{}', $4, '{}', '{}', '{}', null, null, null, null, false, false)",
        repository, names, [ids[n % 100] for n in range(tags)], ids,
    )  # fmt: skip
    return repository, ids


async def measure(connection: asyncpg.Connection[Any], repository: int, ids: list[int]) -> tuple[int, int, float]:
    """Move 10 random tags; gives WAL bytes, buffers touched and milliseconds."""
    rows = await connection.fetch(
        "select name, manifest from tag where repository = $1 and removed is null", repository
    )
    chosen = random.sample(rows, 10)
    manifests = [random.choice([i for i in ids if i != row["manifest"]]) for row in chosen]
    plan = await connection.fetchval(
        "explain (analyze, buffers, wal, format json) "
        "select commit_content($1, 'Bench', '', $2, $3, '{}', '{}', '{}', '{}', '{}', null, null, null, null, false, false)",
        repository, [row["name"] for row in chosen], manifests,
    )  # fmt: skip
    [result] = json.loads(plan)
    node = result["Plan"]
    return node["WAL Bytes"], node["Shared Hit Blocks"] + node["Shared Read Blocks"], result["Execution Time"]


async def compare(
    connection: asyncpg.Connection[Any], repositories: Repositories, *, rounds: int, checkpoint: bool
) -> Costs:
    """Medians of so many commits to each repository, alternating."""
    found: dict[int, list[tuple[int, int, float]]] = {tags: [] for tags in repositories}
    for _ in range(rounds):
        for tags, (repository, ids) in repositories.items():
            if checkpoint:
                await connection.execute("checkpoint")
            found[tags].append(await measure(connection, repository, ids))
    return {tags: [statistics.median(column) for column in zip(*rows, strict=True)] for tags, rows in found.items()}


async def main(rounds: int) -> int:
    random.seed(7)
    with running_postgres(durable=True) as server:
        dsn = server.dsn(user="postgres", database="postgres")
        await migrate(DatabaseSettings(dsn=dsn))
        connection = await connect(DatabaseSettings(dsn=dsn), application="bench")
        repositories = {tags: await fill(connection, f"tags-{tags}", tags) for tags in (500, 50_000)}
        await connection.execute("vacuum analyze")
        after_checkpoint = await compare(connection, repositories, rounds=10, checkpoint=True)
        await connection.execute("alter system set full_page_writes = off")
        await connection.execute("select pg_reload_conf()")
        while await connection.fetchval("show full_page_writes") != "off":
            await asyncio.sleep(0.05)
        alone = await compare(connection, repositories, rounds=rounds, checkpoint=False)
        await connection.close()
    print(f"A commit that moves 10 tags, medians, {rounds} commits each, alternating:")
    print(f"{'':44}{'500 tags':>12}{'50,000 tags':>14}{'ratio':>8}")
    ratios = []
    for position, what in enumerate(("WAL bytes", "buffers touched", "milliseconds")):
        small, large = alone[500][position], alone[50_000][position]
        ratios.append(large / small)
        print(f"{what:44}{small:12,.1f}{large:14,.1f}{large / small:8.2f}")
    small, large = after_checkpoint[500][0], after_checkpoint[50_000][0]
    print(f"{'WAL bytes with page images, after checkpoint':44}{small:12,.1f}{large:14,.1f}{large / small:8.2f}")
    worst = max(ratios[:2])
    print(f"larger ratio of WAL bytes and buffers {worst:.2f}, allowed {LIMIT}")
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    sys.exit(asyncio.run(main(parser.parse_args().rounds)))
