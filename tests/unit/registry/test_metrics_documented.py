"""Every metric is documented, and nothing is documented that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from entrepot.web.metrics import WebMetrics
from entrepot.web.workers import SupervisorMetrics
from entrepot_registry.metrics import RegistryMetrics
from entrepot_token.app import TokenMetrics

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"


def exported(metrics: WebMetrics | SupervisorMetrics) -> set[str]:
    suffix = {"counter": "_total"}
    return {
        family.name + suffix.get(family.type, "")
        for family in metrics.registry.collect()
        if family.name.startswith(metrics.prefix)
    }


@pytest.mark.parametrize("metrics", [RegistryMetrics, TokenMetrics])
def test_documented_metrics_are_the_exported_ones(metrics: type[RegistryMetrics | TokenMetrics]) -> None:
    made = metrics()
    documented = set(re.findall(rf"^\| `({made.prefix}[a-z_]+)` ", DOCUMENT.read_text(), re.MULTILINE))
    of_supervisor = exported(SupervisorMetrics("registry")) if metrics is RegistryMetrics else set()
    assert documented == exported(made) | of_supervisor
