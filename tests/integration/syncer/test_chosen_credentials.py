"""Of several logins for one registry a run uses the one for its repository, with no more connections than the chart gives it."""

from __future__ import annotations

import dataclasses
from urllib.parse import urlsplit

import pytest

from entrepot.credentials import Credentials
from entrepot_syncer.run import Environment
from tests.integration.syncer.conftest import Mirror
from tests.upstreams.server import Upstream

WRONG, RIGHT = ("user", "PASSWORD-CANARY"), ("user", "secret")


@pytest.mark.parametrize(("by_host", "by_path", "outcome"), [(WRONG, RIGHT, "Synced"), (RIGHT, WRONG, "Failed")])
async def test_the_longest_path_that_holds_the_repository_wins(
    mirror: Mirror, upstream: Upstream, by_host: tuple[str, str], by_path: tuple[str, str], outcome: str
) -> None:
    upstream.content().add_image("1.0")
    upstream.auth = "basic"
    host = urlsplit(upstream.url).netloc
    auths = {host: by_host, f"{host}/app": by_path, f"{host}/app/other": by_host}
    await mirror.use_credentials(upstream, Credentials(auths=auths))
    row = await mirror.sync(upstream)
    assert row["outcome"] == outcome, dict(row)
    assert "CANARY" not in str(dict(row))


async def test_a_run_needs_no_more_connections_than_it_is_given(
    mirror: Mirror, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = upstream.content()
    for number in range(30):
        content.add_image(f"v{number}")

    given = mirror.environment

    def few() -> Environment:
        environment = given()
        return dataclasses.replace(environment, database=dataclasses.replace(environment.database, pool_size=4))

    monkeypatch.setattr(mirror, "environment", few)
    row = await mirror.sync(upstream)
    assert row["outcome"] == "Synced", dict(row)
    assert await mirror.tags() == content.tags
