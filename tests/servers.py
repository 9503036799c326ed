"""Real servers that tests and benchmarks start for themselves: PostgreSQL and versitygw, on free ports of loopback."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from entrepot.settings import S3Settings


def free_port() -> int:
    """A port on loopback that nobody listens on at present."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], *, what: str, seconds: float = 30) -> None:
    """Wait for a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come true within {seconds} s")
        time.sleep(0.02)


def is_listening(port: int) -> bool:
    """Whether something accepts connections on loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def stop(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
    """End a process that the tests started, by its id."""
    if process.poll() is None:
        process.send_signal(number)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL server of the test run's own."""

    directory: Path
    port: int
    binaries: Path
    durable: bool = False

    def dsn(self, *, user: str, database: str) -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def control(self, *arguments: str) -> None:
        """Run pg_ctl against the server, as the user that owns it."""
        command = [str(self.binaries / "pg_ctl"), "-D", str(self.directory / "data"), "-w", "-s", *arguments]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, **_as_postgres())  # type: ignore[call-overload]

    def start(self) -> None:
        options = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.directory} -c max_connections=200"
            f" -c fsync={'on' if self.durable else 'off'} -c log_min_messages=fatal"
        )
        self.control("start", "-l", str(self.directory / "log"), "-o", options)

    def stop(self) -> None:
        self.control("stop", "-m", "immediate")


def _as_postgres() -> dict[str, object]:
    """PostgreSQL refuses to run as root: then it runs as the package's user."""
    if os.getuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/"}


@contextmanager
def running_postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """A new PostgreSQL server; `durable` leaves fsync on, as benchmarks want it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    assert found, "PostgreSQL is not installed: run `make setup`"
    directory = Path(tempfile.mkdtemp(prefix="entrepot-pg-"))
    try:
        if os.getuid() == 0:
            shutil.chown(directory, "postgres", "postgres")
        server = Postgres(directory, free_port(), found[-1].parent, durable=durable)
        server.control("initdb", "-o", "-A trust -U postgres --no-sync --locale=C.UTF-8")
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def find_tool(name: str) -> str:
    """The path of a tool that `make setup` built or installed."""
    cache = Path(os.environ.get("ENTREPOT_CACHE", Path.home() / ".cache" / "entrepot"))
    for candidate in (cache / "bin" / name, shutil.which(name)):
        if candidate and Path(candidate).exists():
            return str(candidate)
    raise AssertionError(f"{name} is not installed: run `make setup`")


@dataclass
class ObjectStore:
    """A running versitygw; `settings` gives a new bucket's settings."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    options: tuple[str, ...] = ()

    def start(self) -> None:
        environment = {**os.environ, "ROOT_ACCESS_KEY": "entrepot-test", "ROOT_SECRET_KEY": "entrepot-test-secret"}
        log = (self.directory / "log").open("ab")
        command = [
            find_tool("versitygw"),
            "--port",
            f"127.0.0.1:{self.port}",
            "--quiet",
            *self.options,
            "posix",
            str(self.directory / "data"),
        ]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()
        wait_until(lambda: is_listening(self.port), what="versitygw listens")

    def stop(self) -> None:
        if self.process is not None:
            stop(self.process)

    def settings(self) -> S3Settings:
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        (self.directory / "data" / bucket).mkdir()
        return S3Settings(
            endpoint=f"http://127.0.0.1:{self.port}",
            bucket=bucket,
            access_key_id="entrepot-test",
            secret_access_key="entrepot-test-secret",
        )

    def bucket_path(self, settings: S3Settings) -> Path:
        """Where the bucket's objects lie on disk, to look at them or to damage them."""
        return self.directory / "data" / settings.bucket


@contextmanager
def running_object_store(*, with_log: bool = False) -> Iterator[ObjectStore]:
    """A new S3 server; `with_log` has it write a line a request to `access.log` in its directory."""
    directory = Path(tempfile.mkdtemp(prefix="entrepot-s3-"))
    (directory / "data").mkdir()
    options = ("--access-log", str(directory / "access.log")) if with_log else ()
    store = ObjectStore(directory, free_port(), options=options)
    try:
        store.start()
        yield store
    finally:
        store.stop()
        shutil.rmtree(directory, ignore_errors=True)
