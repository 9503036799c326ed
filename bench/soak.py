"""How much memory the registry takes while 32 clients push a blob of 1 GB each, all at once: `python -m bench.soak`.

The bytes go to disk for real: there must be room for all of them, and for as many again while the S3 server puts parts together. Should it
run out nevertheless, the uploads are stopped before the disk is full. Exits with 1 when a process of the registry has had 256 MiB or more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.processes import descendants, peak
from bench.systems import NAME, running_systems
from tests.servers import find_tool, stop

LIMIT = 256
"""MiB a process."""
RESERVE = 4_000_000_000
"""Bytes of disk that stay free."""


def watched(command: list[str], directory: Path) -> str:
    """What a command prints. Ends it, and us, should the disk fill up."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None:
        if shutil.disk_usage(directory).free < RESERVE:
            stop(process)
            sys.exit("the disk is nearly full: fewer or smaller uploads, by --uploads and --megabytes")
        time.sleep(0.2)
    output, errors = process.communicate()
    if process.returncode != 0:
        sys.exit(errors.decode())
    return output.decode()


async def main(uploads: int, megabytes: int) -> int:
    with tempfile.TemporaryDirectory(prefix="entrepot-soak-") as name:
        directory = Path(name)
        async with running_systems(directory, manifests=1) as systems:
            ours, size = systems.ours, megabytes * 1_000_000
            before = {pid: peak(pid) for pid in descendants(ours.pid)}
            command = [
                find_tool("loadgen"), "-address", ours.address, "-host", ours.host, "-header", ours.headers, "-mode", "push", "-patch",
                "-repository", NAME, "-config", systems.content.config, "-size", str(size), "-connections", str(uploads),
                "-seconds", "0", "-count", str(uploads),
            ]  # fmt: skip
            told = json.loads(await asyncio.to_thread(watched, command, directory))
            after = {pid: peak(pid) for pid in descendants(ours.pid)}
    print(
        f"{uploads} uploads of {megabytes} MB at once: {told['seconds']:.0f} s, {told['bytes'] / told['seconds'] / 1e6:.0f} MB/s"
    )
    for pid, most in after.items():
        print(f"  process {pid}: VmHWM {most} MiB, before {before.get(pid, 0)} MiB (less than {LIMIT} is the target)")
    return 0 if max(after.values()) < LIMIT else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uploads", type=int, default=32)
    parser.add_argument("--megabytes", type=int, default=1000)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.uploads, given.megabytes)))
