"""Requests a second, times and cost of our registry beside Debian's docker-registry, both with their content in the same S3 server.

`python -m bench.registry` runs every workload; `--only manifest` those whose name begins so, `--rounds 1` for a first look. Rounds of the two
alternate, so that what else the machine does falls on both, and medians of the rounds count. Load is closed-loop: a connection asks again
once it has its answer. Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from bench.processes import cpu, descendants, peak
from bench.systems import LARGE, NAME, REDIRECTED, System, Systems, running_systems
from tests.servers import find_tool

Arguments: TypeAlias = list[str]
_HEADERS = """\
User-Agent: loadgen
Accept: application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, \
application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*
"""
"""What a node's runtime sends."""


@dataclass(frozen=True)
class Measured:
    """One system under one load for a few seconds."""

    rate: float
    """Requests, or pushes, a second."""
    megabytes: float
    """A second."""
    p50: float
    """Milliseconds."""
    p99: float
    cpu: float
    """Processor seconds of the server and its children, for 1,000 requests."""
    cpu_behind: float
    """The same of PostgreSQL and S3."""
    calls: float
    """Calls to S3 a request."""
    generator: float
    """The part of one processor that the load generator took."""


@dataclass(frozen=True)
class Target:
    """What is compared, and how: `figure` of ours divided by the peer's must be at least, or at most, `bound`."""

    figure: Callable[[Measured], float]
    name: str
    bound: float
    at_most: bool = False

    def is_met(self, ratio: float) -> bool:
        return ratio <= self.bound if self.at_most else ratio >= self.bound


def rate(bound: float) -> Target:
    return Target(lambda m: m.rate, "requests/s", bound)


def p50(bound: float) -> Target:
    return Target(lambda m: m.p50, "p50", bound, at_most=True)


def p99(bound: float) -> Target:
    return Target(lambda m: m.p99, "p99", bound, at_most=True)


def throughput(bound: float) -> Target:
    return Target(lambda m: m.megabytes, "MB/s", bound)


@dataclass(frozen=True)
class Workload:
    """A load, for each of the two in each round. `ours` and `theirs` give the load generator's arguments for a round."""

    name: str
    connections: tuple[int, ...]
    targets: tuple[Target, ...]
    ours: Callable[[Bench, int, int], Arguments]
    theirs: Callable[[Bench, int, int], Arguments]
    is_s3_itself: bool = False
    """Compare with S3, without a registry, in place of the peer."""
    at_most: int = 100
    """Rounds."""


class Bench:
    """Runs the load generator, and reads what it cost."""

    def __init__(self, systems: Systems, directory: Path, *, rounds: int, seconds: float) -> None:
        self.systems = systems
        self.content = systems.content
        self.rounds = rounds
        self.seconds = seconds
        self._directory = directory
        self._loadgen = find_tool("loadgen")

    def targets(self, *lines: str) -> Arguments:
        """A file of what to ask for."""
        path = self._directory / "targets"
        path.write_text("\n".join(lines) + "\n")
        return ["-targets", str(path)]

    def slice(self, connections: int, number: int) -> list[str]:
        """Manifests that were not asked for before: each round and each number of connections has its own."""
        parts = self.rounds * 2
        part = number * 2 + (connections > 8)
        return self.content.manifests[part::parts]

    def load(self, system: System, connections: int, arguments: Arguments) -> Measured:
        """Run a load to its end."""
        systems = self.systems
        behind = (systems.s3_pid, *system.behind)
        mark, used, used_behind = systems.mark(), cpu(system.pid), sum(map(cpu, behind))
        command = [
            self._loadgen, "-address", system.address, "-host", system.host, "-header", _HEADERS + system.headers,
            "-connections", str(connections), "-seconds", str(self.seconds), *arguments,
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            sys.exit(f"{system.title}: {done.stderr}")
        told = json.loads(done.stdout)
        requests = told["requests"]
        return Measured(
            requests / told["seconds"], told["bytes"] / told["seconds"] / 1e6, told["p50"] * 1e3, told["p99"] * 1e3,
            (cpu(system.pid) - used) / requests * 1000, (sum(map(cpu, behind)) - used_behind) / requests * 1000,
            systems.calls_to_s3(system.bucket, mark) / requests, told["cpu"] / told["seconds"],
        )  # fmt: skip


def _push(size: int, *more: str) -> Callable[[Bench, int, int], Arguments]:
    return lambda b, _c, _n: [
        "-mode", "push", "-repository", NAME, "-config", b.content.config, "-size", str(size), *more,
    ]  # fmt: skip


def _checked(number: int) -> Arguments:
    """In the first round all that comes is compared with its digest, which costs the load generator more than the asking."""
    return ["-check"] if number == 0 else []


def workloads() -> Iterator[Workload]:
    both = (8, 32)

    def hot(b: Bench, _connections: int, number: int) -> Arguments:
        return [*b.targets(f"/v2/{NAME}/manifests/latest {b.content.hot.digest}"), *_checked(number)]

    yield Workload("manifest by tag", both, (rate(6), p50(0.2)), hot, hot)

    def cold(b: Bench, connections: int, number: int) -> Arguments:
        lines = (f"/v2/{NAME}/manifests/{digest} {digest}" for digest in b.slice(connections, number))
        return [*b.targets(*lines), "-seconds", "0", "-check"]

    yield Workload("manifests by digest, first asked", both, (rate(2),), cold, cold)

    def some_tags(b: Bench, _connections: int, _number: int) -> Arguments:
        return b.targets(f"/v2/{NAME}/tags/list?n=100&last=v2")

    def all_tags(b: Bench, connections: int, _number: int) -> Arguments:
        return [*b.targets(*[f"/v2/{NAME}/tags/list"] * connections), "-seconds", "0"]

    # The peer takes many seconds for one list.
    yield Workload("tags, 100 of all / all", (8,), (p99(0.05),), some_tags, all_tags, at_most=2)

    def large(name: str) -> Callable[[Bench, int, int], Arguments]:
        return lambda b, _c, n: [*b.targets(f"/v2/{name}/blobs/{b.content.large} {b.content.large}"), *_checked(n)]

    def itself(b: Bench, _connections: int, number: int) -> Arguments:
        return [*b.targets(f"{b.systems.presigned} {b.content.large}"), *_checked(number)]

    yield Workload("blob of 100 MB, proxied", both, (throughput(0.7),), large(NAME), large(NAME))
    yield Workload(
        "blob of 100 MB, redirected / S3", both, (throughput(0.95),), large(REDIRECTED), itself, is_s3_itself=True
    )
    yield Workload("push of 1 MB and manifest", both, (rate(3),), _push(1_000_000), _push(1_000_000))
    few = ("-seconds", "0", "-count", "8", "-patch")
    yield Workload("push of 100 MB and manifest", (8,), (rate(1.2),), _push(LARGE, *few), _push(LARGE, *few))


def show(workload: Workload, connections: int, ours: list[Measured], theirs: list[Measured]) -> bool:
    """Print what the medians are; gives whether the targets are met."""

    def median(figure: Callable[[Measured], float], of: list[Measured]) -> float:
        return statistics.median(figure(m) for m in of)

    print(f"\n{workload.name}, {connections} connections")
    peer = "S3 itself" if workload.is_s3_itself else "docker-registry"
    for title, of in (("entrepot", ours), (peer, theirs)):
        rates = [m.rate for m in of]
        print(
            f"  {title:16}{median(lambda m: m.rate, of):10,.1f}/s ({min(rates):,.1f} to {max(rates):,.1f})"
            f"{median(lambda m: m.megabytes, of):9,.0f} MB/s"
            f"  p50 {median(lambda m: m.p50, of):9,.2f} ms  p99 {median(lambda m: m.p99, of):9,.2f} ms"
            f"  CPU s/1000: {median(lambda m: m.cpu, of):7.2f} and behind it {median(lambda m: m.cpu_behind, of):7.2f}"
            f"  S3 calls {median(lambda m: m.calls, of):6.2f}  loadgen {median(lambda m: m.generator, of):4.0%}"
        )
    met = True
    for target in workload.targets:
        ratio = median(target.figure, ours) / median(target.figure, theirs)
        is_met = target.is_met(ratio)
        met &= is_met
        bound = f"{'at most' if target.at_most else 'at least'} {target.bound:g}"
        print(f"  {target.name + ' ratio':16}{ratio:10.3f}  ({bound}): {'met' if is_met else 'MISSED'}")
    return met


async def main(only: str, *, rounds: int, seconds: float, manifests: int) -> int:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="entrepot-bench-") as name:
        directory = Path(name)
        async with running_systems(directory, manifests=manifests) as systems:
            print(
                f"filled after {time.monotonic() - begun:.0f} s; load average {os.getloadavg()[0]:.1f}; {rounds} rounds"
            )
            bench = Bench(systems, directory, rounds=rounds, seconds=seconds)
            met = True
            for workload in workloads():
                if not workload.name.startswith(only):
                    continue
                for connections in workload.connections:
                    ours, theirs = [], []
                    for number in range(min(rounds, workload.at_most)):
                        arguments = workload.ours(bench, connections, number)
                        ours.append(await asyncio.to_thread(bench.load, systems.ours, connections, arguments))
                        arguments = workload.theirs(bench, connections, number)
                        theirs.append(await asyncio.to_thread(bench.load, systems.peer, connections, arguments))
                    met &= show(workload, connections, ours, theirs)
            print(
                f"\nmemory at most (VmHWM): entrepot {sum(map(peak, descendants(systems.ours.pid)))} MiB, docker-registry {peak(systems.peer.pid)} MiB;"
                f" load average {os.getloadavg()[0]:.1f}; {time.monotonic() - begun:.0f} s in all"
            )
    return 0 if met else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="workloads whose name begins so")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of each load that does not end by itself")
    parser.add_argument("--manifests", type=int, default=50_000)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.only, rounds=given.rounds, seconds=given.seconds, manifests=given.manifests)))
