"""Real clients against the running service."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests import contents
from tests.conftest import find_tool
from tests.integration.registry.conftest import Demo

pytestmark = pytest.mark.allow_blocking


async def run(*command: str, status: int = 0) -> tuple[str, str]:
    process = await asyncio.create_subprocess_exec(
        find_tool(command[0]), *command[1:],
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == status, err.decode()
    return out.decode(), err.decode()


async def test_skopeo_inspects_lists_and_copies(demo: Demo, tmp_path: Path) -> None:
    image = f"docker://localhost:{demo.running.registry.port}/demo/app"
    out, _ = await run("skopeo", "inspect", "--tls-verify=false", f"{image}:latest")
    assert json.loads(out)["Digest"] == demo.image.digest
    out, _ = await run("skopeo", "list-tags", "--tls-verify=false", image)
    assert json.loads(out)["Tags"] == ["latest"]
    for reference in (":latest", f"@{demo.image.digest}"):
        target = tmp_path / reference.strip(":@")[:6]
        await run("skopeo", "copy", "--src-tls-verify=false", image + reference, f"dir:{target}")
        assert (target / "manifest.json").read_bytes() == demo.image.body
        for blob in demo.image.blobs:
            assert (target / contents.sha256(blob).partition(":")[2]).read_bytes() == blob


async def test_skopeo_copies_all_of_an_index(demo: Demo, tmp_path: Path) -> None:
    images = [contents.image(arch.encode() * 1000, architecture=arch) for arch in ("amd64", "arm64")]
    await contents.push(demo.running.owner, demo.repository, "multi", *images, s3=demo.running.store)
    source = f"docker://localhost:{demo.running.registry.port}/demo/app:multi"
    await run(
        "skopeo", "copy", "--all", "--preserve-digests", "--src-tls-verify=false", source, f"dir:{tmp_path / 'copy'}"
    )
    for image in images:
        stored = tmp_path / "copy" / f"{image.digest.partition(':')[2]}.manifest.json"
        assert stored.read_bytes() == image.body


async def test_skopeo_is_told_what_is_wrong(demo: Demo, tmp_path: Path) -> None:
    base = f"docker://localhost:{demo.running.registry.port}"
    _, err = await run("skopeo", "inspect", "--tls-verify=false", f"{base}/demo/app:absent", status=1)
    assert "no such manifest" in err
    _, err = await run("skopeo", "inspect", "--tls-verify=false", f"{base}/demo/nothing:latest", status=1)
    assert "unauthorized" in err.lower()
    _, err = await run("skopeo", "inspect", "--tls-verify=false", "--creds=a:b", f"{base}/demo/app:latest", status=1)
    assert "anonymous" in err or "unauthorized" in err.lower()
    (tmp_path / "x").mkdir()
    await run("skopeo", "copy", "--src-tls-verify=false", f"{base}/demo/app:latest", f"dir:{tmp_path / 'x'}")
    _, err = await run(
        "skopeo", "copy", "--dest-tls-verify=false", f"dir:{tmp_path / 'x'}", f"{base}/demo/app:new", status=1
    )
    assert "access to the resource is denied" in err
