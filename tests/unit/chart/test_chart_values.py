"""values.yaml is the manual of the chart: every value is explained, checked, and has an effect."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.chart.rendering import CHART, TOP, default_values, rendered_text, schema, template

Path = tuple[str, ...]

OTHERS: dict[Path, Any] = {
    ("nameOverride",): "other",
    ("fullnameOverride",): "other",
    ("commonLabels",): {"team": "platform"},
    ("imagePullSecrets",): [{"name": "regcred"}],
    ("nodeSelector",): {"kubernetes.io/os": "linux"},
    ("tolerations",): [{"operator": "Exists"}],
    ("externalURLs",): ["https://registry.example.com"],
    ("upstream", "deniedCIDRs"): ["10.0.0.0/8"],
    ("logLevel",): "debug",
    ("registry", "pullGrace"): "7m",
    ("registry", "trustedProxies"): ["10.0.0.0/8"],
    ("registry", "traces", "endpoint"): "http://collector:4318",
    ("registry", "traces", "sampleRatio"): 0.5,
    ("registry", "env"): {"ENTREPOT_MAX_UPLOADS": "7"},
    ("storage", "publicEndpoint"): "https://s3.example.com",
    ("image", "pullPolicy"): "Always",
    ("registry", "service", "type"): "LoadBalancer",
    ("registry", "service", "annotations"): {"example.com/a": "b"},
    ("database", "embedded", "parameters"): {"work_mem": "8MB"},
}


ALONG: dict[Path, Any] = {("registry", "redirect"): {"storage": {"publicEndpoint": "https://s3.example.com"}}}
"""What a value cannot be without."""


def leaves(values: dict[str, Any], path: Path = ()) -> Iterator[Path]:
    for key, value in values.items():
        here = (*path, key)
        if here not in OTHERS and isinstance(value, dict) and value and key != "resources":
            yield from leaves(value, here)
        else:
            yield here


def other(path: Path, value: Any) -> Any:
    """A value of the same kind that is not the default."""
    if path in OTHERS:
        return OTHERS[path]
    if path[-1] == "digest":
        return f"sha256:{'a' * 64}"
    if path[-1] == "resources":
        return {"requests": {"cpu": "7m"}, "limits": {"memory": "777Mi"}}
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if re.fullmatch(r"[0-9]+[a-zA-Z]+", value):
        return f"7{value.lstrip('0123456789')}"
    return f"{value}other"


def nested(path: Path, value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    found: dict[str, Any] = value
    return found


LEAVES = list(leaves(default_values()))


@pytest.fixture(scope="module")
def defaults() -> str:
    return rendered_text()


@pytest.mark.parametrize("path", LEAVES, ids=".".join)
def test_every_value_has_an_effect(path: Path, defaults: str) -> None:
    value = default_values()
    for key in path:
        value = value[key]
    along = ALONG.get(path, {})
    before = rendered_text(along) if along else defaults
    assert rendered_text({**along, **nested(path, other(path, value))}) != before, f"{'.'.join(path)} changes nothing"


def test_every_value_has_a_comment_above_it() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    silent = []
    for number, line in enumerate(lines):
        key = re.match(r"^( *)([A-Za-z]+):", line)
        if key is None or lines[number - 1].lstrip().startswith("#"):
            continue
        if (
            key[2] in {"service", "timeouts", "persistence", "image", "requests", "limits", "cpu", "memory"}
            or key[2] in OTHER_KEYS
        ):
            continue  # a group whose members are explained, or Kubernetes' own words below `resources`
        silent.append(f"line {number + 1}: {key[2]}")
    assert not silent


OTHER_KEYS = {"max_connections", "shared_buffers"}


def test_every_value_is_in_the_schema_and_the_schema_has_no_other() -> None:
    def names(node: dict[str, Any], path: Path = ()) -> Iterator[Path]:
        while "$ref" in node:
            node = schema()["$defs"][node["$ref"].rpartition("/")[2]]
        if not node.get("properties") or (path and path[-1] == "resources"):
            yield path
        else:
            for key, child in node["properties"].items():
                yield from names(child, (*path, key))

    assert set(names(schema())) - {("global",)} == set(LEAVES)


def test_the_schema_is_closed() -> None:
    def check(node: Any, path: str) -> None:
        if isinstance(node, dict):
            if "properties" in node and node.get("type") == "object":
                assert node["additionalProperties"] is False, path
            for key, child in node.items():
                check(child, f"{path}.{key}")
        elif isinstance(node, list):
            for child in node:
                check(child, path)

    check(schema(), "")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"registry": {"replica": 3}}, "at '/registry': additional properties 'replica' not allowed"),
        ({"registri": {}}, "additional properties 'registri' not allowed"),
        ({"registry": {"replicas": "three"}}, "at '/registry/replicas': got string, want integer"),
        ({"logLevel": "loud"}, "at '/logLevel': value must be one of"),
        ({"externalURLs": ["registry.example.com"]}, "at '/externalURLs/0'"),
        ({"upstream": {"deniedCIDRs": ["everything"]}}, "at '/upstream/deniedCIDRs/0'"),
        ({"setup": {"timeout": "5 minutes"}}, "at '/setup/timeout'"),
        ({"image": {"digest": "latest"}}, "at '/image/digest'"),
        ({"registry": {"service": {"nodePort": 0}}}, "at '/registry/service/nodePort'"),
        ({"operator": {"resources": {"limit": {}}}}, "additional properties 'limit' not allowed"),
        ({"storage": {"bucket": "UPPER"}}, "at '/storage/bucket'"),
        ({"storage": {"publicEndpoint": "s3.example.com"}}, "at '/storage/publicEndpoint'"),
        ({"registry": {"env": {"PATH": "/tmp"}}}, "at '/registry/env'"),
        ({"registry": {"env": {"ENTREPOT_MAX_UPLOADS": 7}}}, "at '/registry/env/ENTREPOT_MAX_UPLOADS'"),
        ({"registry": {"env": {"ENTREPOT_WORKERS": "2"}}}, "registry.env: the chart sets ENTREPOT_WORKERS itself"),
        ({"registry": {"redirect": True}}, "set storage.publicEndpoint to the address by which they reach it"),
        ({"registry": {"workers": 0}}, "at '/registry/workers'"),
        ({"registry": {"traces": {"sampleRatio": 2}}}, "at '/registry/traces/sampleRatio'"),
    ],
)
def test_a_wrong_value_stops_with_a_sentence_that_names_it(values: dict[str, Any], sentence: str) -> None:
    done = template(values)
    assert done.returncode != 0
    assert sentence in done.stderr


def test_the_page_of_values_is_what_the_comments_say() -> None:
    done = subprocess.run(
        [sys.executable, TOP / "hack" / "values-docs", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
