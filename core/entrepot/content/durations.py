"""Durations as Kubernetes users write them: `90s`, `1h30m`, `1.5h`.

This is the notation of Go's time package, without its sign and its units below a millisecond, which make no sense in
an interval. The CRDs check the same pattern; this module has to stand alone, since a resource can be older than it.
"""

from __future__ import annotations

import re
from datetime import timedelta
from fractions import Fraction
from typing import Final

PATTERN: Final = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
"""As it stands in the CRDs."""
MAX_LENGTH: Final = 64
MAX_DURATION: Final = timedelta(days=3650)

_DURATION = re.compile(PATTERN)
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_MICROSECONDS: Final = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000}


class DurationInvalid(ValueError):
    """Not a duration. The message says how to write one."""


def parse_duration(value: str, *, maximum: timedelta = MAX_DURATION) -> timedelta:
    """To the microsecond, rounded. Raises DurationInvalid, also for one above `maximum`."""
    if len(value) > MAX_LENGTH or not _DURATION.fullmatch(value):
        shown = repr(value[:MAX_LENGTH])
        raise DurationInvalid(
            f"{shown} is not a duration: write numbers with units h, m, s or ms, such as 90s or 1h30m"
        )
    microseconds = sum(Fraction(number) * _MICROSECONDS[unit] for number, unit in _PART.findall(value))
    if microseconds > maximum // timedelta(microseconds=1):
        raise DurationInvalid(f"{value!r} is longer than the maximum, {format_duration(maximum)}")
    return timedelta(microseconds=round(microseconds))


def format_duration(value: timedelta) -> str:
    """The shortest way to write it: `1h30m`, `250ms`, `0s`. ValueError if negative; rounded to milliseconds."""
    if value < timedelta(0):
        raise ValueError(f"a duration is not negative: {value}")
    rest = round(value / timedelta(milliseconds=1))
    text = ""
    for unit, length in (("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)):
        count, rest = divmod(rest, length)
        if count:
            text += f"{count}{unit}"
    return text or "0s"
