"""When a mirror syncs, case by case."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot_operator.schedule import Decision, LastRun, decide

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def last(outcome: str = "Synced", *, ago: timedelta = timedelta(), spec_hash: str = "s") -> LastRun:
    return LastRun(id=UUID(int=1), spec_hash=spec_hash, outcome=outcome, finished_at=NOW - ago)


def look(**given: Any) -> Decision:
    state: dict[str, Any] = {
        "now": NOW, "spec_hash": "s", "suspended": False, "interval": None, "last": None, "failures": 0, "request": None,
        "handled": frozenset(), "retry_initial": timedelta(seconds=30), "retry_maximum": timedelta(minutes=15),
    }  # fmt: skip
    return decide(**{**state, **given})


@pytest.mark.parametrize(
    ("given", "trigger"),
    [
        ({}, "Created"),
        ({"last": last()}, None),
        ({"last": last("NoChange")}, None),
        ({"last": last(spec_hash="other")}, "SpecChanged"),
        ({"last": last("Failed", spec_hash="other"), "failures": 9}, "SpecChanged"),
        ({"last": last(), "request": "1"}, "Requested"),
        ({"last": last(), "request": "1", "handled": frozenset({"1"})}, None),
        ({"last": last("Failed"), "request": "1", "failures": 9}, "Requested"),
        ({"last": last("Failed", ago=timedelta(seconds=29)), "failures": 1}, None),
        ({"last": last("Failed", ago=timedelta(seconds=34)), "failures": 1}, "Retry"),
        ({"last": last("Partial", ago=timedelta(seconds=34)), "failures": 1}, "Retry"),
        ({"last": last("Failed", ago=timedelta(seconds=34)), "failures": 2}, None),
        ({"last": last("Failed", ago=timedelta(minutes=17)), "failures": 20}, "Retry"),
        ({"last": last(ago=timedelta(minutes=59)), "interval": HOUR}, None),
        ({"last": last(ago=timedelta(minutes=67)), "interval": HOUR}, "Scheduled"),
        (
            {"last": last("Partial", ago=timedelta(seconds=20)), "failures": 1, "interval": timedelta(seconds=10)},
            "Scheduled",
        ),
    ],
)
def test_what_is_due(given: dict[str, Any], trigger: str | None) -> None:
    assert look(**given).trigger == trigger
    assert look(**given, suspended=True) == Decision()


def test_the_next_time_is_the_interval_and_up_to_a_tenth() -> None:
    at = look(last=last(), interval=HOUR).next_at
    assert at is not None
    assert HOUR <= at - NOW <= HOUR * 1.1


@given(st.datetimes(timezones=st.just(UTC)), st.uuids())
def test_the_same_state_gives_the_same_time_whenever_one_looks(now: datetime, run: UUID) -> None:
    one = LastRun(id=run, spec_hash="s", outcome="Synced", finished_at=NOW)
    decision = look(now=now, last=one, interval=HOUR)
    assert decision == look(now=now, last=one, interval=HOUR)
    if decision.next_at is not None:
        assert look(now=decision.next_at, last=one, interval=HOUR).trigger == "Scheduled"


def test_mirrors_are_spread() -> None:
    times = {
        look(last=LastRun(id=uuid4(), spec_hash="s", outcome="Synced", finished_at=NOW), interval=HOUR).next_at
        for _ in range(50)
    }
    assert len(times) > 40
