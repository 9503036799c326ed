"""When a mirror syncs: a pure function of what the database knows and what the resource says.

All times follow from the run before, spread by a fraction that follows from that run's id: the same look at the same state gives the same
answer, so a restart of the operator moves nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

__all__ = ["Decision", "LastRun", "decide"]

_SPREAD: Final = 0.1
"""Share of an interval by which it may be longer, so that mirrors do not all start at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastRun:
    """The run that finished last."""

    id: UUID
    spec_hash: str
    outcome: str
    finished_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether to start a run, why, and otherwise when the next one is due (None: not by time)."""

    trigger: str | None = None
    next_at: datetime | None = None


def decide(
    *,
    now: datetime,
    spec_hash: str,
    suspended: bool,
    interval: timedelta | None,
    last: LastRun | None,
    failures: int,
    request: str | None,
    handled: frozenset[str],
    retry_initial: timedelta,
    retry_maximum: timedelta,
) -> Decision:
    """What is due for a mirror that has no run under way.

    `failures` counts the failed and partial runs of this very spec since the last good one; `request` is the annotation that asks for a
    sync, `handled` the values of it that were acted on last.
    """
    if suspended:
        return Decision()
    if request is not None and request not in handled:
        return Decision(trigger="Requested")
    if last is None:
        return Decision(trigger="Created")
    if last.spec_hash != spec_hash:
        return Decision(trigger="SpecChanged")
    due: list[tuple[datetime, str]] = []
    if last.outcome in {"Failed", "Partial"}:
        pause = min(retry_maximum, retry_initial * 2 ** min(max(failures, 1) - 1, 32))
        due.append((last.finished_at + _spread(pause, last.id), "Retry"))
    if interval is not None:
        due.append((last.finished_at + _spread(interval, last.id), "Scheduled"))
    if not due:
        return Decision()
    when, trigger = min(due)
    return Decision(trigger=trigger) if when <= now else Decision(next_at=when)


def _spread(pause: timedelta, run: UUID) -> timedelta:
    fraction = int.from_bytes(hashlib.sha256(run.bytes).digest()[:4], "big") / 2**32
    return pause * (1 + _SPREAD * fraction)
