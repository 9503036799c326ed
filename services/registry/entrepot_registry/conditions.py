"""Headers that go with content: what a client makes an answer depend on, Accept and If-None-Match; and Warning, which it is to show.

Sources: RFC 9110 section 12.5.1 (Accept), 13.1.2 (If-None-Match), 13.1.5 (If-Range); distribution specification, "Warnings".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

__all__ = ["accepts", "format_warning", "is_known", "range_applies"]

# RFC 9110 section 12.5.1: Accept = #( media-range [ weight ] ), media-range = ( "*/*" / type "/*" / type "/" subtype ) parameters
_WEIGHT = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")
_MAX_ACCEPT = 8 * 1024


def accepts(headers: Sequence[str], media_type: str) -> bool:
    """Whether an answer of this media type is acceptable. The most specific range decides; no header accepts everything."""
    text = ",".join(headers)
    return len(text) > _MAX_ACCEPT or _accepts(text, media_type)


@functools.lru_cache(maxsize=256)  # clients say the same few things over and over
def _accepts(text: str, media_type: str) -> bool:
    if not text.strip(" \t,"):
        return True
    wildcard = media_type.partition("/")[0] + "/*"
    best: tuple[int, bool] = (-1, False)
    for element in text.split(","):
        media_range, *parameters = (part.strip(" \t").lower() for part in element.split(";"))
        rank = 2 if media_range == media_type else 1 if media_range == wildcard else 0 if media_range == "*/*" else -1
        if rank < 0:
            continue
        weights = [match[1] for match in map(_WEIGHT.fullmatch, parameters) if match is not None]
        wanted = not weights or float(weights[-1]) > 0
        # Named twice, the kinder one counts.
        best = max(best, (rank, wanted))
    return best[0] >= 0 and best[1]


def is_known(if_none_match: Sequence[str], digest: str) -> bool:
    """Whether the client says that it has this content already. Our entity tag is the digest in quotes."""
    for element in ",".join(if_none_match).split(","):
        tag = element.strip(" \t")
        if tag == "*" or tag.removeprefix("W/") == f'"{digest}"':
            return True
    return False


def range_applies(if_range: str | None, digest: str) -> bool:
    """Whether a Range header counts. A digest's bytes never change, so only another entity tag, or a date, says no."""
    return if_range is None or if_range.strip(" \t") == f'"{digest}"'


def format_warning(text: str) -> str:
    """The Warning header: code 299, no agent, and the text, printable ASCII, in quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'299 - "{escaped}"'
