"""Debian's docker-registry, as an upstream and as a peer: a real registry that is not ours."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from entrepot.settings import S3Settings
from tests.servers import find_tool, free_port, is_listening, stop, wait_until

__all__ = ["DockerRegistry", "running_docker_registry"]


@dataclass(frozen=True)
class DockerRegistry:
    """A running registry. `requests` tells what was asked since a mark."""

    directory: Path
    port: int
    pid: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def mark(self) -> int:
        """Where the access log ends at present."""
        return (self.directory / "log").stat().st_size

    def requests(self, mark: int = 0) -> list[tuple[str, str]]:
        """Method and path of what was asked since the mark, as the registry's own log has it."""
        with (self.directory / "log").open("rb") as file:
            file.seek(mark)
            lines = file.read().decode(errors="replace").splitlines()
        found = []
        for line in lines:
            quoted = line.split('"')
            if len(quoted) > 2 and quoted[1].endswith("HTTP/1.1"):
                method, path, _ = quoted[1].split(" ")
                found.append((method, path))
        return found


def _storage(s3: S3Settings | None, directory: Path) -> str:
    if s3 is None:
        return f"  filesystem: {{rootdirectory: {directory}/data}}\n"
    return (
        f"  s3: {{accesskey: {s3.access_key_id}, secretkey: {s3.secret_access_key}, region: {s3.region}, bucket: {s3.bucket},"
        f" regionendpoint: '{s3.endpoint}', secure: false, v4auth: true, forcepathstyle: true}}\n"
    )


@contextlib.contextmanager
def running_docker_registry(s3: S3Settings | None = None, *, is_peer: bool = False) -> Iterator[DockerRegistry]:
    """A new registry on loopback, that keeps its content on disk or in S3.

    As the peer of a benchmark it keeps descriptors in memory, writes no access log, and never redirects to S3.
    """
    with tempfile.TemporaryDirectory(prefix="entrepot-registry-") as name:
        directory = Path(name)
        registry = DockerRegistry(directory, free_port())
        log_settings = (
            "{level: warn, accesslog: {disabled: true}}" if is_peer else "{level: error, accesslog: {disabled: false}}"
        )
        more = "  cache: {blobdescriptor: inmemory}\n  redirect: {disable: true}\n" if is_peer else ""
        (directory / "config.yml").write_text(
            "version: 0.1\n"
            f"log: {log_settings}\n"
            f"storage:\n  delete: {{enabled: true}}\n{more}{_storage(s3, directory)}"
            f"http: {{addr: '{registry.host}'}}\n"
        )
        # Its S3 driver panics when this is set.
        environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
        with (directory / "log").open("ab") as log:
            process = subprocess.Popen(
                [find_tool("docker-registry"), "serve", str(directory / "config.yml")],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            wait_until(lambda: is_listening(registry.port), what="docker-registry listens")
            yield replace(registry, pid=process.pid)
        finally:
            stop(process)
