"""docs/operator.md lists every setting, metric and reason there is, and none that is not."""

from __future__ import annotations

import ast
import dataclasses
import re
from datetime import timedelta
from pathlib import Path

import prometheus_client

from entrepot.content.durations import format_duration
from entrepot.settings import DatabaseSettings
from entrepot_operator import metrics
from entrepot_operator.runs import KNOWN_REASONS
from entrepot_operator.settings import JobSettings, OperatorSettings, RemoteDefaults, TuningSettings

TOP = Path(__file__).parents[3]
TEXT = (TOP / "docs/operator.md").read_text()
KINDS = ("remote", "repository", "distribution", "repositoryversion")


def test_every_setting_is_documented_with_its_default() -> None:
    documented = dict(re.findall(r"^\| `(ENTREPOT_\w+)` \| `?([^`|]*?)`? \|", TEXT, re.MULTILINE))
    real = {}
    for settings in (OperatorSettings, TuningSettings, JobSettings, RemoteDefaults, DatabaseSettings):
        for field in dataclasses.fields(settings):
            default = field.default
            if default is dataclasses.MISSING:
                text = "required"
            elif isinstance(default, timedelta):
                text = format_duration(default)
            else:
                text = str(default) or "empty"
            real[settings.prefix + field.name.upper()] = text
    documented = {name: _canonical(text) for name, text in documented.items()}
    assert documented == real


def _canonical(text: str) -> str:
    return {"60s": "1m"}.get(text, text)


def test_every_metric_is_documented_with_its_labels() -> None:
    documented = {
        name: tuple(re.findall(r"`(\w+)`", labels))
        for name, labels in re.findall(r"^\| `(entrepot_operator_\w+)` \| ([^|]*)\|", TEXT, re.MULTILINE)
    }
    real = {}
    for name in metrics.__all__:
        metric = getattr(metrics, name)
        suffix = "_total" if isinstance(metric, prometheus_client.Counter) else ""
        real[metric._name + suffix] = metric._labelnames
    assert documented == real


def _reasons() -> set[str]:
    """All words given as `reason=` anywhere in the operator, and the default reasons of its errors."""
    found = set(KNOWN_REASONS)
    for path in (TOP / "operator/entrepot_operator").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "reason":
                found |= _strings(node.value)
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "stalled":
                found |= _strings(node.args[0])
    return found


def _strings(node: ast.AST) -> set[str]:
    return {
        n.value
        for n in ast.walk(node)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value.isalpha()
    }


def test_every_reason_is_documented() -> None:
    pages = TEXT + "".join((TOP / f"docs/resources/{kind}.md").read_text() for kind in KINDS)
    internal = {"RepositoryDeleted"}  # of a run whose Repository is gone: nobody can see it
    missing = {reason for reason in _reasons() - internal if f"`{reason}`" not in pages}
    assert missing == set()


def test_a_condition_shows_every_reason_that_a_sync_can_fail_with() -> None:
    table = (TOP / "docs/sync.md").read_text().split("| reason | what it means")[1].split("\n\n")[0]
    reasons = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    # A defect of the syncer shows as SyncFailed; a run of a deleted Repository is shown by nobody.
    assert reasons - {"InternalError", "RepositoryGone"} <= KNOWN_REASONS


def test_the_chart_grants_what_is_documented_as_needed() -> None:
    chart = (TOP / "charts/entrepot/templates/operator/rbac.yaml").read_text()
    for resource in re.findall(r"resources: \[([^\]]+)\]", TEXT):
        for name in resource.split(", "):
            assert re.search(rf"\b{re.escape(name)}\b", chart), f"the chart's ClusterRole or Role lacks {name}"
