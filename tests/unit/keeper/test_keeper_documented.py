"""docs/keeper.md has every setting with its default and every metric with its labels, and none that does not exist."""

from __future__ import annotations

import dataclasses
import re
from datetime import timedelta
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram

from entrepot.content.durations import format_duration
from entrepot_keeper.metrics import KeeperMetrics
from entrepot_keeper.settings import KeeperSettings

PAGE = (Path(__file__).parents[3] / "docs" / "keeper.md").read_text()


def test_every_setting_is_documented_with_its_default() -> None:
    documented = dict(re.findall(r"^\| `(ENTREPOT_\w+)` \| ([^|]*?) \|", PAGE, re.MULTILINE))
    real = {
        KeeperSettings.prefix + field.name.upper(): format_duration(field.default)
        if isinstance(field.default, timedelta)
        else str(field.default)
        for field in dataclasses.fields(KeeperSettings)
    }
    assert documented == real


def test_every_metric_is_documented_with_its_labels() -> None:
    documented = dict(re.findall(r"^\| `(entrepot_keeper_\w+)` \| ?([^|]*?) ?\|", PAGE, re.MULTILINE))
    metrics = KeeperMetrics()
    made = [metric for metric in vars(metrics).values() if isinstance(metric, (Counter, Gauge, Histogram))]
    real = {
        metric._name + ("_total" if isinstance(metric, Counter) else ""): ", ".join(metric._labelnames)
        for metric in made
    }
    assert documented == real
