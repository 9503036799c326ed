"""The keeper: what nobody waits for. It ends abandoned uploads and removes objects that nothing points at."""

from __future__ import annotations
