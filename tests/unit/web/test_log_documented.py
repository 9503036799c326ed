"""Every field of the access log is documented, and lines are whole whoever writes beside."""

from __future__ import annotations

import io
import json
import re
import select
from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request

from entrepot.web.access_log import AccessLog
from entrepot.web.calls import Call

DOCUMENT = Path(__file__).parents[3] / "docs" / "observability.md"
EVERY_LINE = {"event", "level", "logger", "timestamp"}


class Writes(io.BytesIO):
    """Keeps what each write was given."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.pieces.append(bytes(data))
        return len(data)


def called(path: str = "/v2/") -> Call:
    return Call(make_mocked_request("GET", path, headers={"User-Agent": "u" * 5000}))


async def test_documented_fields_are_the_written_ones() -> None:
    stream = Writes()
    log = AccessLog(stream=stream)
    log.write(called(), status=200, received=0)
    log.flush()
    [line] = b"".join(stream.pieces).splitlines()
    rows = re.findall(r"^\| (`[a-z_]+`(?:, `[a-z_]+`)*) \|", DOCUMENT.read_text(), re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert set(json.loads(line)) == documented | EVERY_LINE


@pytest.mark.parametrize("is_shared", [False, True])
async def test_lines_of_several_processes_are_not_torn(is_shared: bool) -> None:
    stream = Writes()
    log = AccessLog(stream=stream, is_shared=is_shared)
    for _ in range(50):
        call = called("/v2/" + "p" * 5000)
        call.reference, call.name = "r" * 5000, "n" * 200
        log.write(call, status=200, received=0)
    log.flush()
    if is_shared:
        assert all(len(piece) <= select.PIPE_BUF and piece.endswith(b"\n") for piece in stream.pieces)
        assert len(stream.pieces) > 10
    lines = b"".join(stream.pieces).splitlines()
    assert len(lines) == 50
    assert all(json.loads(line)["status"] == 200 for line in lines)
