"""Byte ranges: of blobs that are read, and of uploads that are written.

Serving a range is optional for a server, so whatever cannot be understood means the whole body; only a range that is
understood and lies outside the blob is an error. For an upload it is the other way round: the range says where the
bytes belong, and a guess would corrupt a blob.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from entrepot.oci.errors import ErrorCode, GrammarError, excerpt


class RangeNotSatisfiable(GrammarError):
    """A range that lies outside the content. The answer carries `content_range(None, size)`."""

    code = ErrorCode.RANGE_INVALID
    status = 416

    def __init__(self, value: str, size: int) -> None:
        super().__init__(f"the range {excerpt(value)} lies outside the content, which has {size} bytes")
        self.size = size


class UploadRangeInvalid(GrammarError):
    """A Content-Range of an upload that cannot be read."""

    code = ErrorCode.BLOB_UPLOAD_INVALID


# RFC 9110 section 14.1.1 and 14.1.2, the parts that concern one range of bytes:
# > ranges-specifier = range-unit "=" range-set
# > int-range        = first-pos "-" [ last-pos ]
# > suffix-range     = "-" suffix-length
# Unit names are case-insensitive. Optional white space is allowed around an element of a list.
_RANGE = re.compile(r"(?i:bytes)=[ \t]*(?P<first>[0-9]*)-(?P<last>[0-9]*)[ \t]*")
_MAX_RANGE: Final = 128

# OCI distribution specification 1.1, "Pushing a blob in chunks":
# > Content-Range: <range>, which matches ^[0-9]+-[0-9]+$
_UPLOAD_RANGE = re.compile(r"(?P<first>[0-9]{1,19})-(?P<last>[0-9]{1,19})")


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Both ends are included, as in the headers."""

    start: int
    end: int

    @property
    def length(self) -> int:
        """Bytes."""
        return self.end - self.start + 1

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


def parse_range(value: str | None, size: int) -> ByteRange | None:
    """The range asked for, cut at `size`; None for the whole body.

    None also for another unit, several ranges, and what cannot be read (RFC 9110 section 14.2 lets a server ignore
    the header). Raises RangeNotSatisfiable for a range that begins after the end, for an empty suffix, and for
    `500-0`: the RFC calls the last one invalid, and the registry specification's own tests want 416 for it.
    """
    if value is None or len(value) > _MAX_RANGE:
        return None
    match = _RANGE.fullmatch(value)
    if match is None or (not match["first"] and not match["last"]):
        return None
    if not match["first"]:
        suffix = int(match["last"])
        if suffix == 0:
            raise RangeNotSatisfiable(value, size)
        # The last n bytes of nothing are nothing, and nothing cannot be written as a Content-Range.
        return ByteRange(max(0, size - suffix), size - 1) if size else None
    start = int(match["first"])
    end = min(int(match["last"]), size - 1) if match["last"] else size - 1
    if start > end:
        raise RangeNotSatisfiable(value, size)
    return ByteRange(start, end)


def content_range(part: ByteRange | None, size: int) -> str:
    """The Content-Range of an answer: 206 with a part, 416 without (RFC 9110 section 14.4)."""
    return f"bytes {'*' if part is None else part}/{size}"


def parse_upload_range(value: str) -> ByteRange:
    """The Content-Range of a chunk. Raises UploadRangeInvalid."""
    match = _UPLOAD_RANGE.fullmatch(value)
    if match is None:
        raise UploadRangeInvalid(f"the Content-Range of a chunk is written <first>-<last>: {excerpt(value)}")
    part = ByteRange(int(match["first"]), int(match["last"]))
    if part.length < 1:
        raise UploadRangeInvalid(f"the chunk {excerpt(value)} ends before it begins")
    return part


def upload_range(size: int) -> str:
    """The Range header that tells a client how much of an upload has arrived; `0-0` while nothing has."""
    return f"0-{max(0, size - 1)}"
