"""What is said about a run: which tags failed and why, and what that makes of the whole."""

from __future__ import annotations

from dataclasses import dataclass

from entrepot.db.content import Commit
from entrepot.db.syncer import RunEnd
from entrepot.errors import EntrepotError

__all__ = ["Failures", "TagFailure", "contact_of", "end_of_failed_run", "end_of_run"]

_MAX_SHOWN = 10
_MAX_MESSAGE = 1024
_NO_CONTACT = frozenset({"Unauthorized", "UpstreamUnreachable", "RateLimited", "AddressDenied"})
"""Reasons that say something of the Remote and not of what was asked of it."""


@dataclass(frozen=True, slots=True)
class TagFailure:
    """Why a tag (or a manifest that was asked for by digest) is not mirrored."""

    tag: str
    reason: str
    message: str


class Failures:
    """The first ten are kept, all are counted: fifty thousand tags can fail at once."""

    def __init__(self) -> None:
        self.first: list[TagFailure] = []
        self.count = 0

    def add(self, tag: str, error: EntrepotError) -> None:
        self.count += 1
        if len(self.first) < _MAX_SHOWN:
            self.first.append(TagFailure(tag, error.reason, _one_line(error.message)))

    def as_json(self) -> list[dict[str, str]]:
        return [{"tag": f.tag, "reason": f.reason, "message": f.message} for f in self.first]


def end_of_run(commit: Commit | None, failures: Failures, *, selected: int) -> RunEnd:
    """`commit` is None where there was nothing to commit; `selected` counts the tags that were to be mirrored."""
    version = commit.version if commit is not None else None
    added, removed = (commit.added_tags, commit.removed_tags) if commit is not None else (0, 0)
    if not failures.count:
        message = None if selected else "the upstream has no tag that the filters select"
        outcome = "Synced" if version is not None else "NoChange"
        return RunEnd(outcome=outcome, message=message, version=version, added=added, removed=removed)
    first = failures.first[0]
    everything = failures.count >= selected
    share = f"all {selected} tags" if everything else f"{failures.count} of {selected} tags"
    return RunEnd(
        outcome="Failed" if everything else "Partial",
        reason=first.reason,
        message=_one_line(f"{share} could not be mirrored, the first is {first.tag}: {first.message}"),
        version=version,
        added=added,
        removed=removed,
        failed_tags=failures.as_json(),
        failed_tag_count=failures.count,
    )


def end_of_failed_run(error: EntrepotError) -> RunEnd:
    """Nothing could be mirrored, for one reason."""
    return RunEnd(outcome="Failed", reason=error.reason, message=_one_line(error.message))


def contact_of(end: RunEnd) -> tuple[str, str | None]:
    """What a run that came to its end says of the Remote: where tags are named without wildcards, the first request is for one of them."""
    if end.outcome == "Failed" and end.reason in _NO_CONTACT:
        return end.reason, end.message
    return "Reachable", None


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_MESSAGE else f"{line[: _MAX_MESSAGE - 1]}…"
