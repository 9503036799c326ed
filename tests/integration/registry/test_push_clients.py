"""podman, buildah and skopeo log in, push, pull, copy, sign, mount and delete, and get over a registry that dies under them."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import os
import random
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import bcrypt
import pytest

from entrepot.db.pool import Connection, connect
from entrepot.oci import media_types
from entrepot.settings import S3Settings
from tests import contents, services
from tests.conftest import Database
from tests.integration.registry.conftest import make_place
from tests.processes import Processes, process
from tests.pushes import pusher
from tests.services import Running
from tests.tools import SIGNER, Tools, made_tools

pytestmark = pytest.mark.allow_blocking

USER, PASSWORD = "alice", "correct horse"
RULES = """
- subjects: ["entrepot:htpasswd:alice"]
  verbs: [pull, push, delete]
  namespaces: [demo]
  names: ["*"]
"""


def write_users(directory: Path) -> tuple[Path, Path]:
    """One user with all rights in one namespace; gives the files of users and of rights."""
    users, rules = directory / "htpasswd", directory / "rules.yaml"
    users.write_text(f"{USER}:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()}\n")
    rules.write_text(RULES)
    return users, rules


@dataclass
class Desk:
    """A registry with two empty repositories, and somebody logged in who may do anything there."""

    running: Running
    tools: Tools

    async def tags(self, name: str = "demo/app") -> list[str]:
        out, _ = await self.tools.skopeo("list-tags", "--tls-verify=false", f"docker://{self.tools.host}/{name}")
        return list(json.loads(out)["Tags"])

    async def mounts(self) -> float:
        """Blobs mounted so far: these clients do not push blobs in one POST."""
        return await self.running.metric(r'entrepot_registry_requests_total\{code="201",method="POST".*uploads/"')


@pytest.fixture
async def desk(database: Database, s3: S3Settings, tmp_path: Path) -> AsyncIterator[Desk]:
    users, rules = write_users(tmp_path)
    token = {"htpasswd_file": users, "rights_file": rules}
    async with services.running(database, s3, tmp_path / "keys", token=token) as running:
        for name in ("demo/app", "demo/two", "demo/three"):
            await make_place(running, name)
        with made_tools(running.registry.port) as tools:
            await tools.login(USER, PASSWORD)
            yield Desk(running, tools)


async def test_podman_logs_in_pushes_and_pulls_back_the_same(desk: Desk) -> None:
    tools = desk.tools
    await tools.build(tools.image(), b"first", os.urandom(200_000))
    await tools.podman("push", "--tls-verify=false", "--digestfile", str(tools.directory / "digest"), tools.image())
    digest = (tools.directory / "digest").read_text().strip()
    before = json.loads((await tools.podman("inspect", tools.image()))[0])[0]
    await tools.podman("rmi", "--all", "--force")
    await tools.podman("pull", "--tls-verify=false", tools.image())
    after = json.loads((await tools.podman("inspect", tools.image()))[0])[0]
    assert (after["Id"], after["RootFS"]) == (before["Id"], before["RootFS"])
    assert after["Digest"] == digest
    assert await desk.tags() == ["v1"]
    # The same again changes nothing.
    await tools.podman("push", "--tls-verify=false", tools.image())
    assert await desk.running.owner.fetchval("select max(number) from version") == 1


async def test_who_has_no_password_or_the_wrong_one_neither_pulls_nor_pushes(desk: Desk) -> None:
    tools = desk.tools
    await tools.build(tools.image(), b"first")
    _, err = await tools.podman(
        "login", "--tls-verify=false", "--username", USER, "--password", "wrong", tools.host, status=125
    )
    assert "invalid username/password" in err
    _, err = await tools.podman("push", "--tls-verify=false", "--creds", "bob:wrong", tools.image(), status=125)
    assert "unauthorized" in err.lower() or "invalid username/password" in err
    await tools.podman("logout", tools.host)
    _, err = await tools.podman("push", "--tls-verify=false", tools.image(), status=125)
    assert "denied" in err
    assert await desk.running.owner.fetchval("select count(*) from repository_blob") == 0


@pytest.mark.parametrize(("form", "compression"), [("oci", "gzip"), ("oci", "zstd"), ("v2s2", "gzip")])
async def test_podman_pushes_either_form_with_either_compression(desk: Desk, form: str, compression: str) -> None:
    tools = desk.tools
    await tools.build("localhost/made", b"compress me " * 5000)
    options = ("--tls-verify=false", "--format", form, "--compression-format", compression)
    await tools.podman("push", *options, "localhost/made", tools.image())
    out, _ = await tools.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{tools.image()}")
    [layer] = json.loads(out)["layers"]
    assert layer["mediaType"].endswith(compression)
    await tools.podman("rmi", "--all", "--force")
    await tools.podman("pull", "--tls-verify=false", tools.image())


async def test_buildah_pushes_an_index_of_two_architectures_and_each_is_pulled(desk: Desk) -> None:
    tools = desk.tools
    await tools.buildah("manifest", "create", "localhost/multi")
    for arch in ("amd64", "arm64"):
        await tools.build(f"localhost/{arch}", arch.encode() * 100, arch=arch)
        await tools.buildah("manifest", "add", "localhost/multi", f"localhost/{arch}")
    await tools.buildah(
        "manifest", "push", "--all", "--tls-verify=false", "localhost/multi", f"docker://{tools.image()}"
    )
    for arch in ("amd64", "arm64"):
        out, _ = await tools.skopeo(
            "--override-arch", arch, "inspect", "--config", "--tls-verify=false", f"docker://{tools.image()}"
        )
        assert json.loads(out)["architecture"] == arch
        await tools.podman("pull", "--tls-verify=false", "--arch", arch, tools.image())
    out, _ = await tools.skopeo("inspect", "--raw", "--tls-verify=false", f"docker://{tools.image()}")
    assert {entry["platform"]["architecture"] for entry in json.loads(out)["manifests"]} == {"amd64", "arm64"}


async def test_skopeo_copies_a_whole_index_and_mounts_what_it_has_seen_elsewhere(desk: Desk) -> None:
    tools, owner = desk.tools, desk.running.owner
    images = [contents.image(os.urandom(50_000), architecture=arch) for arch in ("amd64", "arm64")]
    repository = await owner.fetchval("select repository from distribution where base_path = 'demo/app'")
    digest = await contents.push(owner, repository, "v1", *images, s3=desk.running.store)
    options = ("copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false")
    mounts = []
    for name in ("demo/two", "demo/three"):
        target = f"docker://{tools.image(name, 'copied')}"
        await tools.skopeo(*options, f"docker://{tools.image()}", target)
        out, _ = await tools.skopeo("inspect", "--raw", "--tls-verify=false", target)
        assert contents.sha256(out.encode()) == digest
        mounts.append(await desk.mounts())
    # skopeo learns where a blob is when it reads it, so only the second time.
    assert mounts[1] - mounts[0] >= len(images)
    # Either way the bytes are stored once.
    assert await owner.fetchval("select count(*) from blob where object_key is not null") == len(images)


async def test_podman_mounts_what_it_pushed_to_another_repository_before(desk: Desk) -> None:
    tools = desk.tools
    await tools.build("localhost/made", os.urandom(100_000))
    for name in ("demo/app", "demo/two"):
        await tools.podman("push", "--tls-verify=false", "localhost/made", tools.image(name))
    assert await desk.mounts() >= 1
    await tools.podman("rmi", "--all", "--force")
    await tools.podman("pull", "--tls-verify=false", tools.image("demo/two"))


async def test_skopeo_deletes_an_image_and_it_is_gone(desk: Desk) -> None:
    tools = desk.tools
    await tools.build(tools.image(), b"first")
    for tag in ("v1", "v2"):
        await tools.podman("push", "--tls-verify=false", tools.image(), tools.image(tag=tag))
    await tools.skopeo("delete", "--tls-verify=false", f"docker://{tools.image()}")
    # skopeo deletes by digest, and so what else was tagged with it.
    assert await desk.tags() == []
    await tools.podman("rmi", "--all", "--force")
    _, err = await tools.podman("pull", "--tls-verify=false", tools.image(tag="v2"), status=125)
    assert "manifest unknown" in err or "no such manifest" in err


# Signatures


async def test_what_podman_signed_is_pulled_by_who_demands_the_signature_and_nothing_else_is(desk: Desk) -> None:
    tools = desk.tools
    policy = tools.policy(await tools.make_key(), "demo/app")
    await tools.build("localhost/made", b"signed")
    await tools.build("localhost/other", b"not signed")
    await tools.podman("push", "--tls-verify=false", "--sign-by", SIGNER, "localhost/made", tools.image(tag="signed"))
    await tools.podman("push", "--tls-verify=false", "localhost/other", tools.image(tag="unsigned"))
    await tools.podman("rmi", "--all", "--force")
    await tools.podman("pull", "--tls-verify=false", "--signature-policy", str(policy), tools.image(tag="signed"))
    _, err = await tools.podman(
        "pull", "--tls-verify=false", "--signature-policy", str(policy), tools.image(tag="unsigned"), status=125
    )
    assert "signature" in err
    assert not Path("/var/lib/containers/sigstore/demo").exists()


async def test_a_signature_travels_with_skopeo_copy_and_only_if_the_name_is_the_signed_one(desk: Desk) -> None:
    tools = desk.tools
    policy = tools.policy(await tools.make_key(), "demo")
    await tools.build("localhost/made", b"signed")
    await tools.podman("push", "--tls-verify=false", "--sign-by", SIGNER, "localhost/made", tools.image())
    options = ("copy", "--src-tls-verify=false", "--dest-tls-verify=false")
    await tools.skopeo("--policy", str(policy), *options, f"docker://{tools.image()}", f"dir:{tools.directory}/copy")
    assert (tools.directory / "copy" / "signature-1").exists()
    await tools.skopeo(*options, f"docker://{tools.image()}", f"docker://{tools.image('demo/two')}")
    _, err = await tools.skopeo(
        "--policy",
        str(policy),
        *options,
        f"docker://{tools.image('demo/two')}",
        f"dir:{tools.directory}/again",
        status=1,
    )
    assert "demo/app" in err or "signature" in err


async def test_a_signature_made_apart_is_put_read_back_and_verified(desk: Desk) -> None:
    tools = desk.tools
    policy = tools.policy(await tools.make_key(), "demo/app")
    image = contents.image(b"layer")
    client = await pusher(desk.running)
    await client.image(image, "v1")
    (tools.directory / "manifest.json").write_bytes(image.body)
    await tools.skopeo("standalone-sign", "manifest.json", tools.image(), SIGNER, "--output", "signature")
    made = (tools.directory / "signature").read_bytes()
    path = f"/extensions/v2/demo/app/signatures/{image.digest}"
    body = {
        "schemaVersion": 2,
        "name": f"{image.digest}@{'0' * 32}",
        "type": "atomic",
        "content": base64.b64encode(made).decode(),
    }
    assert (await client.ask("PUT", path, data=json.dumps(body).encode())).status == 201
    listed = (await client.ask("GET", path)).json()["signatures"]
    assert [(entry["name"], entry["type"], entry["content"]) for entry in listed] == [
        (body["name"], "atomic", body["content"])
    ]
    await tools.skopeo(
        "--policy",
        str(policy),
        "copy",
        "--src-tls-verify=false",
        f"docker://{tools.image()}",
        f"dir:{tools.directory}/copy",
    )
    fingerprint = next(
        line.split(":")[9] for line in (await tools.run("gpg", "--batch", "--with-colons", "--list-keys"))[0].splitlines() if line.startswith("fpr")
    )  # fmt: skip
    await tools.skopeo("standalone-verify", "manifest.json", tools.image(), fingerprint, "copy/signature-1")


# Size, and a registry that dies


def write_large_image(directory: Path, mebibytes: int) -> str:
    """An image with one large layer in skopeo's `dir:` form, mostly noise with a stretch of zeros; gives the layer's digest.

    The layer is gzip without compression: skopeo compresses what is not, and we do not test how fast it does.
    """
    directory.mkdir()
    noise = random.Random(1)
    layer = directory / "layer"
    with gzip.open(layer, "wb", compresslevel=0) as out:
        for number in range(mebibytes):
            out.write(bytes(1024 * 1024) if number % 8 == 7 else noise.randbytes(1024 * 1024))
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = layer.stat().st_size
    layer.rename(directory / digest)
    config = json.dumps(
        {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [f"sha256:{'0' * 64}"]}}
    ).encode()
    (directory / contents.sha256(config).partition(":")[2]).write_bytes(config)
    manifest = {
        "schemaVersion": 2, "mediaType": media_types.OCI_MANIFEST, "config": contents.descriptor(config, media_types.OCI_CONFIG),
        "layers": [{"mediaType": media_types.OCI_LAYER_GZIP, "digest": f"sha256:{digest}", "size": size}],
    }  # fmt: skip
    (directory / "manifest.json").write_text(json.dumps(manifest))
    (directory / "version").write_text("Directory Transport Version: 1.1\n")
    return digest


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def test_a_layer_of_200_mb_goes_in_and_comes_out_unchanged(desk: Desk) -> None:
    tools = desk.tools
    digest = write_large_image(tools.directory / "large", 200)
    source, target = f"dir:{tools.directory}/large", f"docker://{tools.image()}"
    await tools.skopeo("copy", "--dest-tls-verify=false", source, target)
    await tools.skopeo("copy", "--src-tls-verify=false", target, f"dir:{tools.directory}/back")
    assert file_digest(tools.directory / "back" / digest) == digest
    assert await desk.running.owner.fetchval("select count(*) from upload") == 0
    assert await desk.running.owner.fetchval("select count(*) from object where owner like 'upload/%'") == 0


@asynccontextmanager
async def two_processes(database: Database, s3: S3Settings, directory: Path) -> AsyncIterator[Processes]:
    """A token service and the means to run a registry, with a user and a repository."""
    users, rules = write_users(directory)
    both = Processes(database, s3, directory)
    both.token |= {"ENTREPOT_HTPASSWD_FILE": str(users), "ENTREPOT_RIGHTS_FILE": str(rules)}
    owner = await connect(database.settings(), application="test")
    repository = await contents.make_repository(owner)
    await contents.make_distribution(owner, repository, access="Private")
    await owner.close()
    with process("entrepot_token", both.token_log, both.token):
        yield both


async def test_a_push_whose_registry_was_killed_in_the_middle_succeeds_the_next_time(
    database: Database, s3: S3Settings, tmp_path: Path
) -> None:
    async with two_processes(database, s3, tmp_path) as both, aiohttp.ClientSession() as http:
        owner = await connect(database.settings(), application="test")
        with made_tools(both.ports[0]) as tools:
            digest = write_large_image(tools.directory / "large", 96)
            source, target = f"dir:{tools.directory}/large", f"docker://{tools.image()}"
            with process("entrepot_registry", both.log, both.registry) as first:
                await both.ready(http)
                await tools.login(USER, PASSWORD)
                # Whether a client tries again by itself is its own affair, and its version's.
                copy = asyncio.create_task(tools.skopeo("copy", "--dest-tls-verify=false", source, target, status=1))
                await in_the_middle(owner, copy)
                await asyncio.to_thread(_kill, first)
                await copy
            with process("entrepot_registry", both.log, both.registry):
                await both.ready(http)
                await tools.skopeo("copy", "--dest-tls-verify=false", source, target)
                await tools.skopeo("copy", "--src-tls-verify=false", target, f"dir:{tools.directory}/back")
                assert file_digest(tools.directory / "back" / digest) == digest
        await owner.close()


async def in_the_middle(owner: Connection, copy: asyncio.Task[tuple[str, str]]) -> None:
    """Wait until an upload has begun and its first bytes are stored, but it has not ended."""
    async with asyncio.timeout(60):
        while not await owner.fetchval("select exists (select from upload)"):
            assert not copy.done(), await copy
            await asyncio.sleep(0.005)


def _kill(started: subprocess.Popen[bytes]) -> None:
    started.kill()
    started.wait(10)
