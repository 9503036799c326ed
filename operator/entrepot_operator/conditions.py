"""From what a reconciler found to what the status says, by the rules of kstatus, which kubectl, GitOps tools and people rely on.

Pure: the one place where conditions are made. The rules:

- Ready is always there. It is Unknown only while Reconciling is True.
- Reconciling and Stalled are there only while True, never both. Reconciling means that the operator is still at it by itself, either for the
  first time for this generation or after a failure; Stalled means that a human must act.
- `observedGeneration` of the status moves on when a generation has been dealt with: Ready or Stalled, not on a failure that is tried again.
- `lastTransitionTime` changes when a condition's status flips, not when only reason or message change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from entrepot.errors import EntrepotError, Failed, Stalled, Waiting

__all__ = ["Result", "Transition", "condition_of", "new_status", "one_line", "rfc3339", "transition"]

_MAX_MESSAGE: Final = 1024
"""Far below what the API takes: it is read in a column of a terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A reconciler has done all there is to do for now."""

    reason: str
    message: str
    requeue_after: timedelta | None = None
    """When to look again, if nothing happens before."""


def rfc3339(moment: datetime) -> str:
    """A time as the API writes it; `moment` is in UTC."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def one_line(text: str) -> str:
    """A message fit for a condition: one line, of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= _MAX_MESSAGE else line[: _MAX_MESSAGE - 1] + "…"


def condition_of(status: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    """The condition of a type."""
    return next((c for c in status.get("conditions") or () if c["type"] == kind), None)


def new_status(
    old: Mapping[str, Any],
    *,
    generation: int,
    outcome: Result | EntrepotError,
    fields: Mapping[str, Any],
    now: datetime,
) -> dict[str, Any]:
    """The whole status after a look at an object.

    `old` is the status as it is; `fields` are all of its other fields as they should be.
    """
    wanted = _conditions(outcome)
    settled = isinstance(outcome, Result | Stalled)
    conditions = [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": one_line(message),
            "observedGeneration": generation,
            "lastTransitionTime": _since(old, kind, status, now),
        }
        for kind, status, reason, message in wanted
    ]
    observed = generation if settled else old.get("observedGeneration", -1)
    return {**fields, "observedGeneration": observed, "conditions": conditions}


def _conditions(outcome: Result | EntrepotError) -> Sequence[tuple[str, str, str, str]]:
    match outcome:
        case Result():
            return [("Ready", "True", outcome.reason, outcome.message)]
        case Stalled():
            stalled = (outcome.reason, outcome.message)
            return [("Ready", "False", *stalled), ("Stalled", "True", *stalled)]
        case Waiting():
            return [
                ("Ready", "Unknown", outcome.reason, outcome.message),
                ("Reconciling", "True", "Progressing", outcome.message),
            ]
        case Failed():
            return [
                ("Ready", "False", outcome.reason, outcome.message),
                ("Reconciling", "True", "ProgressingWithRetry", "it is tried again by itself: " + outcome.message),
            ]
        case _:
            # Any other error of ours is a mistake in the operator, and worth another attempt all the same.
            return _conditions(Failed(outcome.message, reason=outcome.reason))


def _since(old: Mapping[str, Any], kind: str, status: str, now: datetime) -> str:
    before = condition_of(old, kind)
    if before is not None and before["status"] == status:
        return str(before["lastTransitionTime"])
    return rfc3339(now)


@dataclass(frozen=True, slots=True)
class Transition:
    """What is worth an event: of type Normal or Warning, with the condition's own reason and message."""

    type: str
    reason: str
    message: str


def transition(old: Mapping[str, Any], new: Mapping[str, Any]) -> Transition | None:
    """The event for a change of status, if it deserves one: Ready changed its status or reason, or there is a new version."""
    before, after = condition_of(old, "Ready"), condition_of(new, "Ready")
    if after is None or (after["status"] == "Unknown" and before is not None and before["status"] != "False"):
        return None
    if before is not None and (before["status"], before["reason"]) == (after["status"], after["reason"]):
        made = (new.get("lastSync") or {}).get("version")
        if made is None or made == (old.get("lastSync") or {}).get("version"):
            return None
    elif before is not None and before["status"] == after["status"] == "True" and after["reason"] == "NoChange":
        return None  # nothing happened, and nothing was wrong before
    return Transition("Warning" if after["status"] == "False" else "Normal", after["reason"], after["message"])
