"""Upstream registries for the tests: one of our own that can do everything wrong, and Debian's real one."""

from __future__ import annotations
