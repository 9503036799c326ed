"""How long an absence is borne, and what a defect of the process ends in."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import timedelta
from typing import Any

import pytest

import entrepot_syncer.__main__ as process
from entrepot.errors import StorageUnavailable
from entrepot_syncer.patience import patiently

OUTAGE = timedelta(seconds=1)
"""Longer than the pauses between the first attempts, which are up to 0.2, 0.4 and 0.8 s by chance."""


class Work:
    """Fails at each try, after having worked for the given seconds, and succeeds after the last."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.tries = 0

    async def __call__(self) -> str:
        self.tries += 1
        if not self.seconds:
            return "done"
        await asyncio.sleep(self.seconds.pop(0))
        raise StorageUnavailable("away")


async def test_the_time_counts_from_the_first_failure() -> None:
    assert await patiently(Work(1.1), outage=OUTAGE) == "done"


async def test_a_long_attempt_that_meets_another_outage_is_granted_that() -> None:
    assert await patiently(Work(0.0, 1.1, 0.0), outage=OUTAGE) == "done"


async def test_it_ends() -> None:
    begun = time.monotonic()
    work = Work(*[0.0] * 1000)
    with pytest.raises(StorageUnavailable):
        await patiently(work, outage=OUTAGE)
    assert time.monotonic() - begun < 10
    long = Work(*[0.02] * 100)
    with pytest.raises(StorageUnavailable):
        await patiently(long, outage=timedelta(milliseconds=10))
    assert 2 <= long.tries <= 15


async def test_a_defect_of_the_process_is_named_and_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def perform(*_: Any) -> None:
        raise ValueError("PASSWORD-CANARY")

    monkeypatch.setattr(process, "perform", perform)
    status, words = await process._run(uuid.uuid4(), None)  # type: ignore[arg-type] # it gets no further
    assert status == 75
    assert words is not None
    assert words["reason"] == "InternalError"
    assert "ValueError" in str(words["message"])
    assert "CANARY" not in str(words)
