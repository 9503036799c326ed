"""What reads bytes from clients, fuzzed for a few seconds each; `make soak` takes longer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.fuzz.targets import TARGETS
from tests.processes import ROOT

PARTS = ("", "core", "services/registry")


@pytest.mark.parametrize("target", TARGETS)
def test_any_bytes_are_read_or_refused(target: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--seconds", os.environ.get("ENTREPOT_TEST_FUZZ_SECONDS", "2"), target],
        check=False, capture_output=True, cwd=ROOT, env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in PARTS)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    assert f"{target}: nothing found" in done.stdout.decode()
