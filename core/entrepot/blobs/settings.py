"""The sizes of what is sent to S3, and of the memory that it takes on the way.

S3's own limits: 10,000 parts, each but the last at least 5 MiB. Part sizes double every thousand parts, so that the memory of ordinary
layers is that of a few small parts and 10,000 of them are enough for more than 200 GB with the default settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from entrepot.settings import SettingInvalid, Settings

__all__ = ["MAX_PARTS", "MIN_PART", "BufferSettings"]

_MIB = 1024 * 1024
MIN_PART = 5 * _MIB
"""S3: bytes of each part of a multipart upload but the last."""
MAX_PARTS = 10_000
_PARTS_PER_SIZE = 1000


@dataclass(frozen=True, kw_only=True)
class BufferSettings(Settings):
    """How much memory the bytes under way may take."""

    prefix: ClassVar[str] = "ENTREPOT_BUFFER_"

    budget: int = 48 * _MIB
    """Bytes of all buffers of a process together."""

    part_size: int = 8 * _MIB
    """Bytes of the first parts of a multipart upload; at least 5 MiB, which is S3's own limit."""

    parts_in_flight: int = 2
    """Parts of one upload that are sent while the next one fills."""

    patience: timedelta = timedelta(minutes=2)
    """How long one upload may wait for room in the budget, of which slow ones may hold much, before it fails for now."""

    def __post_init__(self) -> None:
        if self.part_size < MIN_PART:
            raise SettingInvalid(f"{self.prefix}PART_SIZE must be at least {MIN_PART} (5 MiB), not {self.part_size}")
        if self.budget < 2 * self.part_size:
            raise SettingInvalid(
                f"{self.prefix}BUDGET must be at least two parts, {2 * self.part_size}, not {self.budget}"
            )
        if self.parts_in_flight < 1:
            raise SettingInvalid(f"{self.prefix}PARTS_IN_FLIGHT must be at least 1")

    def size_of_part(self, number: int) -> int:
        """Bytes of a part, the first being number 0: more towards the end, and never more than half of the budget."""
        return min(self.part_size << (number // _PARTS_PER_SIZE), max(self.part_size, self.budget // 2))

    def smallest_part(self, number: int) -> int:
        """Bytes that are worth a part when a client pauses: S3's least, and more towards the end, or small chunks would use all parts up."""
        return min(MIN_PART << (number // _PARTS_PER_SIZE), self.size_of_part(number))

    @property
    def largest_object(self) -> int:
        """Bytes that all parts together hold."""
        return _PARTS_PER_SIZE * sum(self.size_of_part(first) for first in range(0, MAX_PARTS, _PARTS_PER_SIZE))
