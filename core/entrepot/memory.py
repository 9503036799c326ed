"""Memory that goes back when it is given back.

The C library raises, by itself, the size from which on it asks the system for memory: after the first part of several MiB was freed, the
next ones come from its heap, which they leave full of holes. A process that holds 48 MiB of parts has twice that in the end. With the size
fixed, each large buffer is the system's again as soon as it is freed.
"""

from __future__ import annotations

import ctypes

__all__ = ["return_large_buffers"]

_M_MMAP_THRESHOLD = -3
"""glibc, malloc.h"""
_FROM = 1024 * 1024


def return_large_buffers() -> bool:
    """To be called once, at the start of a process. False where the C library is not glibc, and nothing changes."""
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    return adjust is not None and adjust(_M_MMAP_THRESHOLD, _FROM) == 1
