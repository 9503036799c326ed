"""Every setting of the web services is documented with its default, and nothing is documented that does not exist."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from entrepot.settings import Settings
from entrepot.web.settings import WebSettings
from entrepot.web.traces import TracesSettings
from entrepot_registry.settings import RegistrySettings
from entrepot_token.settings import TokenSettings

DOCUMENTS = Path(__file__).parents[3] / "docs"


@pytest.mark.parametrize(
    ("settings", "document", "heading"),
    [
        (WebSettings, "registry.md", "Both services:"),
        (RegistrySettings, "registry.md", "Registry:"),
        (TokenSettings, "registry.md", "Token service:"),
        (
            TracesSettings,
            "observability.md",
            "With `ENTREPOT_TRACES_ENDPOINT` the registry sends OpenTelemetry traces by OTLP over HTTP:",
        ),
    ],
)
def test_documented_settings_are_the_ones_that_are_read(settings: type[Settings], document: str, heading: str) -> None:
    section = (DOCUMENTS / document).read_text().split(f"\n{heading}\n")[1].split("\n\n")[0]
    documented = set(re.findall(r"^\| `(ENTREPOT_[A-Z_]+)` ", section, re.MULTILINE))
    assert documented == {settings.prefix + field.name.upper() for field in dataclasses.fields(settings)}
