"""Large buffers go back to the system, in a process of its own, since the adjustment is for good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CORE = Path(__file__).parents[2] / "core"
SCRIPT = """
import io
from entrepot.memory import return_large_buffers
assert return_large_buffers()

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def part():
    buffer = io.BytesIO()
    for _ in range(128):
        buffer.write(bytes(65536))
    return buffer

part()  # the first one that is freed is what would raise the size
before, kept = resident(), []
parts = [(part(), bytearray(4096)) for _ in range(16)]
kept = [small for _, small in parts]  # what lies between them stays
assert resident() - before > 100 * 1024 * 1024
del parts
assert resident() - before < 16 * 1024 * 1024, resident() - before
"""


def test_large_buffers_that_are_freed_are_the_systems_again() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], env={"PYTHONPATH": str(CORE)}, capture_output=True, text=True, check=False)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
