"""What the operator's tests run against: a real API server and etcd of their own, without kubelet and controllers, and the operator as a process.

An API server of their own, because two operators in one cluster would fight over the same objects, and because tests here take it away. The
operator has exactly the rights that docs/operator.md says it needs.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.servers import find_tool, free_port, stop, wait_until

T = TypeVar("T")

TOP = Path(__file__).parents[2]
SYSTEM = "entrepot-system"
"""The release's namespace in these tests."""


def make_certificate(directory: Path, name: str, *, host: str = "127.0.0.1") -> tuple[Path, Path]:
    """A self-signed certificate and its key, as files."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    today = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = directory / f"{name}.crt", directory / f"{name}.key"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    return files


@dataclass
class ApiServer:
    """A running etcd and kube-apiserver on loopback, and a small client of an administrator."""

    directory: Path
    port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def kubeconfig(self, user: str) -> Path:
        """A kubeconfig for admin or operator."""
        path = self.directory / f"{user}.kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {
                            "name": "c",
                            "cluster": {
                                "server": self.url,
                                "certificate-authority": str(self.directory / "apiserver.crt"),
                            },
                        }
                    ],
                    "users": [{"name": user, "user": {"token": f"token-{user}"}}],
                    "contexts": [{"name": "x", "context": {"cluster": "c", "user": user}}],
                    "current-context": "x",
                }
            )
        )
        return path

    def request(
        self, method: str, path: str, body: Any = None, *, content_type: str = "application/json", check: bool = True
    ) -> dict[str, Any]:
        """One request as an administrator; without `check` an error's Status is given like any answer."""
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": "Bearer token-admin", "Content-Type": content_type},
        )
        context = ssl.create_default_context(cafile=self.directory / "apiserver.crt")
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            if check:
                raise AssertionError(f"{method} {path}: {error.code} {text}") from error
            failure: dict[str, Any] = json.loads(text)
            return failure

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{self.url}/readyz", headers={"Authorization": "Bearer token-admin"}),
                timeout=5,
                context=ssl.create_default_context(cafile=self.directory / "apiserver.crt"),
            ):
                return True
        except OSError:
            return False

    def apply(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Server-side apply, as kubectl would."""
        return self.request(
            "PATCH",
            f"{path_of(body)}?fieldManager=test&force=true",
            body,
            content_type="application/apply-patch+yaml",
        )

    def merge(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self.request("PATCH", path, body, content_type="application/merge-patch+json")

    def get(self, path: str) -> dict[str, Any] | None:
        answer = self.request("GET", path, check=False)
        return None if answer.get("kind") == "Status" and answer.get("code") == 404 else answer

    def items(self, path: str) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self.request("GET", path)["items"]
        return listed

    def delete(self, path: str) -> None:
        self.request("DELETE", path, check=False)


_CORE = {"Namespace": "namespaces", "Secret": "secrets"}
_PLURALS = {
    "Remote": "remotes",
    "Repository": "repositories",
    "Distribution": "distributions",
    "RepositoryVersion": "repositoryversions",
    "CustomResourceDefinition": "customresourcedefinitions",
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "Role": "roles",
    "RoleBinding": "rolebindings",
    "Job": "jobs",
    "Pod": "pods",
}


def path_of(body: Mapping[str, Any]) -> str:
    """The address of an object."""
    metadata, kind = body["metadata"], body["kind"]
    version = body["apiVersion"]
    base = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    if "namespace" in metadata:
        base += f"/namespaces/{metadata['namespace']}"
    return f"{base}/{_CORE.get(kind) or _PLURALS[kind]}/{metadata['name']}"


def ours(plural: str, namespace: str, name: str = "") -> str:
    """The address of our objects."""
    return f"/apis/entrepot.dev/v1alpha1/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")


@contextmanager
def running_api_server() -> Iterator[ApiServer]:
    """An API server with our CRDs and the operator's rights."""
    directory = Path(tempfile.mkdtemp(prefix="entrepot-api-"))
    make_certificate(directory, "apiserver")
    make_certificate(directory, "serviceaccount")
    (directory / "tokens").write_text(
        'token-admin,admin,admin,"system:masters"\n'
        f"token-operator,system:serviceaccount:{SYSTEM}:entrepot-operator,operator,\n"
    )
    server = ApiServer(directory, free_port())
    try:
        _start(server)
        wait_until(server.is_ready, what="the API server is ready", seconds=60)
        _prepare(server)
        yield server
    finally:
        for process in reversed(server.processes):
            stop(process)
        shutil.rmtree(directory, ignore_errors=True)


def _start(server: ApiServer) -> None:
    directory, etcd, peer = server.directory, free_port(), free_port()
    kube = find_tool("localkube")
    commands = [
        [
            kube, "etcd", "--data-dir", str(directory / "etcd"), "--log-level", "error", "--unsafe-no-fsync",
            "--listen-client-urls", f"http://127.0.0.1:{etcd}", "--advertise-client-urls", f"http://127.0.0.1:{etcd}",
            "--listen-peer-urls", f"http://127.0.0.1:{peer}", "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-cluster", f"default=http://127.0.0.1:{peer}",
        ],
        [
            kube, "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{etcd}", f"--secure-port={server.port}",
            "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--service-cluster-ip-range=10.97.0.0/24",
            "--authorization-mode=RBAC", f"--token-auth-file={directory / 'tokens'}",
            f"--tls-cert-file={directory / 'apiserver.crt'}", f"--tls-private-key-file={directory / 'apiserver.key'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={directory / 'serviceaccount.key'}",
            f"--service-account-signing-key-file={directory / 'serviceaccount.key'}",
            "--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none",
        ],
    ]  # fmt: skip
    for command in commands:
        log = (directory / f"{command[1]}.log").open("ab")
        server.processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        log.close()


def documented_rules() -> dict[str, list[dict[str, Any]]]:
    """The rights that docs/operator.md says the operator needs, as ClusterRole and Role."""
    text = (TOP / "docs/operator.md").read_text()
    found = re.findall(r"```yaml\n# (\w+)\n(.*?)```", text, re.DOTALL)
    return {kind: yaml.safe_load(rules) for kind, rules in found}


def _prepare(server: ApiServer) -> None:
    for path in sorted((TOP / "crds").glob("*.yaml")):
        server.apply(yaml.safe_load(path.read_text()))
    server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
    subject = {
        "kind": "User",
        "apiGroup": "rbac.authorization.k8s.io",
        "name": f"system:serviceaccount:{SYSTEM}:entrepot-operator",
    }
    rules = documented_rules()
    for kind, namespace in (("ClusterRole", None), ("Role", SYSTEM)):
        metadata = {"name": "operator", **({"namespace": namespace} if namespace else {})}
        api = {"apiVersion": "rbac.authorization.k8s.io/v1"}
        server.apply({**api, "kind": kind, "metadata": metadata, "rules": rules[kind]})
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "operator"}
        server.apply(
            {**api, "kind": f"{kind}Binding", "metadata": metadata, "roleRef": reference, "subjects": [subject]}
        )
    for plural in ("remotes", "repositories", "distributions", "repositoryversions"):
        wait_until(
            lambda plural=plural: server.request("GET", ours(plural, "default"), check=False)["kind"] != "Status",  # type: ignore[misc]
            what=f"{plural} are served",
        )


POD_TEMPLATE = {
    "metadata": {"labels": {"app.kubernetes.io/name": "entrepot", "app.kubernetes.io/component": "syncer"}},
    "spec": {
        "automountServiceAccountToken": False,
        "containers": [{"name": "syncer", "image": "localhost/entrepot:test", "env": [{"name": "A", "value": "b"}]}],
    },
}


@dataclass
class Operator:
    """The operator as a process, against an API server and a database."""

    api: ApiServer
    dsn: str
    owner_dsn: str
    directory: Path
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it works."""
        keys, template = self.directory / "keys", self.directory / "pod.yaml"
        keys.mkdir(exist_ok=True)
        (keys / "k1").write_text(base64.b64encode(b"k" * 32).decode())
        template.write_text(yaml.safe_dump(POD_TEMPLATE))
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ENTREPOT_")},
            "PYTHONPATH": os.pathsep.join(str(TOP / part) for part in ("core", "operator")),
            "KUBECONFIG": str(self.api.kubeconfig("operator")),
            "ENTREPOT_NAMESPACE": SYSTEM,
            "ENTREPOT_RELEASE": "entrepot",
            "ENTREPOT_EXTERNAL_URLS": "http://localhost:30500",
            "ENTREPOT_SYNCER_JOB_TEMPLATE": str(template),
            "ENTREPOT_CREDENTIALS_KEY_DIR": str(keys),
            "ENTREPOT_DATABASE_DSN": self.dsn,
            "ENTREPOT_METRICS_PORT": str(self.port),
            "ENTREPOT_OPERATOR_POLL_INTERVAL": "300ms",
            "ENTREPOT_OPERATOR_BACKOFF_INITIAL": "100ms",
            "ENTREPOT_OPERATOR_BACKOFF_MAXIMUM": "2s",
            "ENTREPOT_OPERATOR_SECRET_INTERVAL": "1s",
            **self.settings,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "entrepot_operator"],
                env=environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(lambda: self._answers("/readyz"), what=f"the operator is ready ({self.log})")

    @property
    def log(self) -> Path:
        return self.directory / "operator.log"

    def _answers(self, path: str) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the operator ended: {self.log.read_text()[-3000:]}"
        try:
            return self.http(path)[0] == 200
        except OSError:
            return False

    def http(self, path: str) -> tuple[int, str]:
        """Ask its own port."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; gives its exit code."""
        assert self.process is not None
        stop(self.process, number)
        return self.process.returncode

    def sql(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """A statement as the owner of the database."""
        return self.on_database(lambda connection: connection.fetch(statement, *arguments))

    def on_database(self, work: Callable[[asyncpg.Connection[asyncpg.Record]], Awaitable[T]]) -> T:
        """Something with a connection of the database's owner."""

        async def run() -> T:
            connection = await asyncpg.connect(self.owner_dsn)
            try:
                await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
                return await work(connection)
            finally:
                await connection.close()

        return asyncio.run(run())


def condition(body: Mapping[str, Any] | None, kind: str) -> dict[str, Any]:
    """A condition, empty if there is none."""
    found = ((body or {}).get("status") or {}).get("conditions") or []
    return next((one for one in found if one["type"] == kind), {})
