"""Whatever a reconciler returns or raises, after whatever was before: the conditions obey kstatus."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.errors import CommitRefused, DatabaseUnavailable, EntrepotError, Failed, Stalled, Waiting
from entrepot_operator.conditions import Result, condition_of, new_status, one_line, transition
from tests.unit.operator.kstatus import violations

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
Outcome = Result | EntrepotError

READY = Result(reason="Synced", message="version 1")
NO_CHANGE = Result(reason="NoChange", message="in step")
STALLED = Stalled("spec.url: bad", reason="InvalidSpec")
WAITING = Waiting("the first sync waits", reason="SyncPending", after=timedelta(seconds=1))
FAILED = Failed("401 UNAUTHORIZED", reason="Unauthorized")
AWAY = DatabaseUnavailable("PostgreSQL does not answer")
ODD = CommitRefused("never to be seen here")
ALL: list[Outcome] = [READY, NO_CHANGE, STALLED, WAITING, FAILED, AWAY, ODD]


def after(
    old: dict[str, Any], outcome: Outcome, *, generation: int = 1, now: datetime = NOW, **fields: Any
) -> dict[str, Any]:
    status = new_status(old, generation=generation, outcome=outcome, fields=fields, now=now)
    assert violations({"metadata": {"generation": generation}, "status": status}) == []
    return status


def shape(status: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(c["type"], c["status"], c["reason"]) for c in status["conditions"]]


@pytest.mark.parametrize(
    ("outcome", "expected", "observed"),
    [
        (READY, [("Ready", "True", "Synced")], 1),
        (STALLED, [("Ready", "False", "InvalidSpec"), ("Stalled", "True", "InvalidSpec")], 1),
        (WAITING, [("Ready", "Unknown", "SyncPending"), ("Reconciling", "True", "Progressing")], -1),
        (FAILED, [("Ready", "False", "Unauthorized"), ("Reconciling", "True", "ProgressingWithRetry")], -1),
        (ODD, [("Ready", "False", "InternalError"), ("Reconciling", "True", "ProgressingWithRetry")], -1),
    ],
)
def test_each_consequence_has_its_conditions(
    outcome: Outcome, expected: list[tuple[str, str, str]], observed: int
) -> None:
    status = after({"observedGeneration": -1}, outcome)
    assert shape(status) == expected
    assert status["observedGeneration"] == observed


@given(st.lists(st.tuples(st.sampled_from(ALL), st.integers(0, 1)), min_size=1, max_size=12))
def test_the_rules_hold_over_any_history(history: list[tuple[Outcome, int]]) -> None:
    status: dict[str, Any] = {"observedGeneration": -1}
    generation = 1
    for outcome, step in history:
        generation += step
        status = after(status, outcome, generation=generation)


def test_a_failure_does_not_move_the_observed_generation_and_a_success_does() -> None:
    first = after({"observedGeneration": -1}, READY, generation=1)
    second = after(first, FAILED, generation=2)
    assert second["observedGeneration"] == 1
    assert after(second, READY, generation=2)["observedGeneration"] == 2


def test_the_time_changes_only_when_the_status_flips() -> None:
    first = after({}, READY)
    second = after(first, NO_CHANGE, now=LATER)
    assert second["conditions"][0]["lastTransitionTime"] == first["conditions"][0]["lastTransitionTime"]
    third = after(second, FAILED, now=LATER)
    assert third["conditions"][0]["lastTransitionTime"] == "2026-01-01T12:01:00Z"


@pytest.mark.parametrize("outcome", ALL)
def test_the_same_outcome_again_changes_nothing(outcome: Outcome) -> None:
    first = after({}, outcome, uuid="x")
    assert after(first, outcome, now=LATER, uuid="x") == first


def test_messages_are_one_bounded_line() -> None:
    status = after({}, Failed("two\nlines\t and " + "x" * 5000, reason="Odd"))
    message = (condition_of(status, "Ready") or {})["message"]
    assert message.startswith("two lines and x")
    assert len(message) == 1024
    assert one_line("a\n\n b") == "a b"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (None, READY, ("Normal", "Synced")),
        (READY, READY, None),
        (READY, FAILED, ("Warning", "Unauthorized")),
        (FAILED, FAILED, None),
        (FAILED, AWAY, ("Warning", "DatabaseUnavailable")),
        (FAILED, NO_CHANGE, ("Normal", "NoChange")),
        (READY, NO_CHANGE, None),
        (STALLED, WAITING, ("Normal", "SyncPending")),
        (None, WAITING, ("Normal", "SyncPending")),
        (READY, WAITING, None),
        (WAITING, READY, ("Normal", "Synced")),
    ],
)
def test_events_are_for_transitions(old: Outcome | None, new: Outcome, expected: tuple[str, str] | None) -> None:
    before = {} if old is None else after({}, old)
    happened = transition(before, after(before, new))
    assert (None if happened is None else (happened.type, happened.reason)) == expected


def test_a_new_version_is_worth_an_event_although_ready_stays() -> None:
    one = after({}, READY, lastSync={"run": "a", "version": 1})
    two = after(one, READY, lastSync={"run": "b", "version": 2})
    assert transition(one, two) is not None
    assert transition(two, after(two, READY, lastSync={"run": "c"})) is None
