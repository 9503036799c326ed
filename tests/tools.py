"""podman, buildah and skopeo with storage, configuration and keys of their own in a directory that goes away with them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers import find_tool

__all__ = ["SIGNER", "Tools", "made_tools"]

SIGNER = "signer@example.test"


@dataclass(frozen=True)
class Tools:
    """The clients. `host` is how they reach the registry."""

    directory: Path
    host: str

    @property
    def environment(self) -> dict[str, str]:
        place = str(self.directory)
        # TMPDIR: layers are put together there, and the default is a directory that outlives the test.
        return {
            "PATH": os.environ["PATH"], "HOME": place, "XDG_RUNTIME_DIR": place, "TMPDIR": place, "GNUPGHOME": f"{place}/gpg",
            "REGISTRY_AUTH_FILE": f"{place}/auth.json",
        }  # fmt: skip

    async def run(self, *command: str, status: int = 0, seconds: float = 120) -> tuple[str, str]:
        """Run a command; gives what it wrote to both outputs."""
        process = await asyncio.create_subprocess_exec(
            find_tool(command[0]), *command[1:], env=self.environment, cwd=self.directory,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            out, err = await asyncio.wait_for(process.communicate(), seconds)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == status, (command, process.returncode, err.decode())
        return out.decode(), err.decode()

    def _storage(self) -> tuple[str, ...]:
        # vfs needs nothing of the kernel.
        return ("--root", f"{self.directory}/root", "--runroot", f"{self.directory}/run", "--storage-driver", "vfs")

    async def podman(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        options = ("--tmpdir", f"{self.directory}/libpod", "--cgroup-manager", "cgroupfs", "--events-backend", "none")
        return await self.run("podman", *self._storage(), *options, *arguments, status=status)

    async def buildah(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        return await self.run("buildah", *self._storage(), *arguments, status=status)

    async def skopeo(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        return await self.run("skopeo", *arguments, status=status)

    def image(self, name: str = "demo/app", tag: str = "v1") -> str:
        """A reference for podman and buildah."""
        return f"{self.host}/{name}:{tag}"

    async def login(self, user: str, password: str) -> None:
        """As users do; the password goes to a file that is only ours."""
        await self.podman("login", "--tls-verify=false", "--username", user, "--password", password, self.host)

    async def build(self, tag: str, *files: bytes, arch: str = "amd64") -> None:
        """An image out of nothing, a layer a file."""
        context = Path(tempfile.mkdtemp(dir=self.directory))
        lines = ["FROM scratch", "LABEL org.example.made-by=test"]
        for number, data in enumerate(files):
            (context / f"file-{number}").write_bytes(data)
            lines.append(f"COPY file-{number} /")
        (context / "Containerfile").write_text("\n".join(lines) + "\n")
        await self.buildah(
            "build", "--layers", "--isolation", "chroot", "--platform", f"linux/{arch}", "-t", tag, str(context)
        )

    async def make_key(self) -> Path:
        """A key to sign with, without a passphrase; gives the file with its public half."""
        await self.run("gpg", "--batch", "--passphrase", "", "--quick-generate-key", SIGNER, "rsa2048", "sign", "never")
        public = self.directory / "public.gpg"
        await self.run("gpg", "--batch", "--output", str(public), "--armor", "--export", SIGNER)
        return public

    def policy(self, public: Path, scope: str) -> Path:
        """A policy that takes only what the key signed, and nothing from elsewhere."""
        rule = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(public)}
        written = self.directory / "policy.json"
        written.write_text(
            json.dumps({"default": [{"type": "reject"}], "transports": {"docker": {f"{self.host}/{scope}": [rule]}}})
        )
        return written


@contextmanager
def made_tools(port: int) -> Iterator[Tools]:
    """Clients of the registry on a port of loopback. Short paths: a key agent's socket must fit into 108 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="entrepot-cl-"))
    (directory / "gpg").mkdir(mode=0o700)
    (directory / "auth.json").write_text("{}")
    tools = Tools(directory, f"localhost:{port}")
    try:
        yield tools
    finally:
        # The agent that gpg starts ends by itself once its directory is gone, but later.
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            subprocess.run(
                ["gpgconf", "--kill", "all"], env=tools.environment, check=False, timeout=20, capture_output=True
            )
        shutil.rmtree(directory, ignore_errors=True)
