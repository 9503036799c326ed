"""What real pushes leave behind, by way of the registry: all of it goes, and what was stored stays."""

from __future__ import annotations

import io
import os
from pathlib import Path

from tests import contents, services
from tests.integration.keeper.conftest import Ward
from tests.services import Running

MIB = 1024 * 1024


async def begun(running: Running, headers: dict[str, str], *chunks: bytes) -> str:
    """An upload with these chunks; gives its path."""
    answer = await running.request("POST", "/v2/demo/app/blobs/uploads/", headers=headers)
    assert answer.status == 202, answer.body
    path = answer.headers["Location"].removeprefix(running.url)
    offset = 0
    for chunk in chunks:
        ranged = {"Content-Range": f"{offset}-{offset + len(chunk) - 1}", "Content-Type": "application/octet-stream"}
        answer = await running.request("PATCH", path, headers={**headers, **ranged}, data=io.BytesIO(chunk))
        assert answer.status == 202, answer.body
        path, offset = answer.headers["Location"].removeprefix(running.url), offset + len(chunk)
    return path


def stored(ward: Ward) -> list[Path]:
    """Objects in the bucket."""
    return [path for path in ward.server.bucket_path(ward.s3).glob("blobs/*") if path.is_file()]


async def test_abandoned_and_cancelled_uploads_leave_nothing_and_finished_ones_all(ward: Ward, tmp_path: Path) -> None:
    await contents.make_distribution(ward.owner, ward.repository)
    async with services.running(ward.database, ward.s3, tmp_path / "keys") as running:
        headers = await running.granted()
        chunks = os.urandom(9 * MIB), os.urandom(100_000), os.urandom(40_000)
        abandoned = await begun(running, headers, *chunks)
        small = await begun(running, headers, os.urandom(50_000))
        cancelled = await begun(running, headers, *chunks[:2])
        assert (await running.request("DELETE", cancelled, headers=headers)).status == 204
        finished = await begun(running, headers, *chunks)
        digest = contents.sha256(b"".join(chunks))
        sign = "&" if "?" in finished else "?"
        answer = await running.request("PUT", f"{finished}{sign}digest={digest}", headers=headers)
        assert answer.status == 201, answer.body
        assert await ward.open_multiparts() > 0
        await ward.owner.execute("update upload set touched_at = now() - interval '25 hours'")
        await ward.owner.execute(
            "update object set created_at = now() - interval '49 hours', delete_after = delete_after - interval '49 hours'"
        )
        await ward.round()
        for path in (abandoned, small, cancelled):
            answer = await running.request("GET", path, headers=headers)
            assert (answer.status, answer.code) == (404, "BLOB_UPLOAD_UNKNOWN")
        blob = await running.request("GET", f"/v2/demo/app/blobs/{digest}", headers=headers)
        assert (blob.status, blob.body) == (200, b"".join(chunks))
    assert (await ward.on_record(), await ward.uploads()) == (set(), set())
    assert await ward.open_multiparts() == 0
    assert len(stored(ward)) == 1
