"""docs/sync.md names every setting, every default and every reason there is."""

from __future__ import annotations

import dataclasses
import re
from datetime import timedelta
from pathlib import Path

import pytest

from entrepot.blobs.store import BufferSettings
from entrepot.settings import Settings
from entrepot.upstream.settings import UpstreamSettings
from entrepot_syncer.settings import ProcessSettings, SyncerSettings

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "sync.md").read_text()
SOURCES = [*(ROOT / "core/entrepot/upstream").glob("*.py"), *(ROOT / "services/syncer/entrepot_syncer").glob("*.py")]


@pytest.mark.parametrize("cls", [BufferSettings, UpstreamSettings, SyncerSettings, ProcessSettings])
def test_every_setting_is_documented_with_its_default(cls: type[Settings]) -> None:
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        row = re.search(rf"^\| `{cls.prefix}{field.name.upper()}` \|([^|]*)\|", PAGE, re.MULTILINE)
        assert row is not None, field.name
        assert row[1].strip() == shown(field.default), field.name


def shown(value: object) -> str:
    match value:
        case timedelta():
            seconds = value.total_seconds()
            if seconds < 1:
                return f"{seconds * 1000:.0f}ms"
            return f"{seconds / 60:.0f}m" if seconds % 60 == 0 else f"{seconds:.0f}s"
        case bool():
            return str(value).lower()
        case None | ():
            return ""
    return str(value)


def test_every_reason_is_documented() -> None:
    reasons = {
        reason
        for path in SOURCES
        for found in re.findall(r'reason\s*=\s*"([A-Za-z]+)"|_not_found\("([A-Za-z]+)"', path.read_text())
        for reason in found
        if reason
    }
    assert len(reasons) > 12
    assert {reason for reason in reasons if f"`{reason}`" not in PAGE} == set()
