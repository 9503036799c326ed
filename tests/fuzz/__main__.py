"""Run targets, each in a process of its own, for a number of seconds; 1 if one of them found something, and its bytes are printed."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_NAMES = ("route", "names", "manifest", "config", "ranges", "accept", "scope", "challenge", "page")


def fuzz(name: str, seconds: int, directory: Path) -> None:
    """Fuzz in this process until the time is up, which ends it, or something is found, which does so with a failure."""
    try:
        import atheris  # type: ignore[import-untyped]
    except ImportError:
        # Only where there is no atheris for the processor.
        from tests.fuzz.targets import SEEDS, TARGETS

        _without_guidance(TARGETS[name], SEEDS[name], seconds)
        return
    with atheris.instrument_imports(include=["entrepot", "entrepot_registry"]):
        from tests.fuzz.targets import SEEDS, TARGETS
    for number, seed in enumerate(SEEDS[name]):
        (directory / f"seed-{number}").write_bytes(seed)
    # A parser that takes seconds for 64 KiB hangs the event loop for all.
    limits = [f"-max_total_time={seconds}", "-timeout=3", "-rss_limit_mb=1024", "-max_len=65536", "-len_control=20"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={directory}/found-", str(directory)], TARGETS[name])
    atheris.Fuzz()


def _without_guidance(target: Callable[[bytes], None], seeds: Sequence[bytes], seconds: int) -> None:
    """Seeds with random changes."""
    source, end = random.Random(), time.monotonic() + seconds
    while time.monotonic() < end:
        data = bytearray(source.choice(seeds))
        for _ in range(source.randrange(8)):
            position = source.randrange(len(data) + 1)
            data[position : position + source.randrange(4)] = source.randbytes(source.randrange(4))
        target(bytes(data))


def run(name: str, seconds: int) -> bool:
    """Run a target in a process; whether it found nothing."""
    with tempfile.TemporaryDirectory(prefix="entrepot-fuzz-") as directory:
        command = [sys.executable, "-m", "tests.fuzz", "--in", directory, "--seconds", str(seconds), name]
        done = subprocess.run(command, check=False, capture_output=True, timeout=seconds + 120)
        found = [path.read_bytes() for path in Path(directory).glob("found-*")]
    if done.returncode == 0 and not found:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        print(f"{name}: nothing found in {seconds} s. {last}")
        return True
    print(
        f"{name}: FOUND {found}\n{done.stderr.decode(errors='replace')[-4000:]}{done.stdout.decode(errors='replace')[-2000:]}"
    )
    return False


def main() -> int:
    """See above."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("names", nargs="*", choices=[*_NAMES, []], default=[], help="all of them if none is given")
    options.add_argument("--seconds", type=int, default=10, help="for each target")
    options.add_argument("--in", dest="directory", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.directory is not None:
        fuzz(chosen.names[0], chosen.seconds, chosen.directory)
        return 0
    results = [run(name, chosen.seconds) for name in chosen.names or _NAMES]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
