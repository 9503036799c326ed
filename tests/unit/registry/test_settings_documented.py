"""Every setting of the web services is documented with its default, and nothing is documented that does not exist."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from entrepot.settings import Settings
from entrepot.web.settings import WebSettings
from entrepot_registry.settings import RegistrySettings
from entrepot_token.settings import TokenSettings

DOCUMENT = Path(__file__).parents[3] / "docs" / "registry.md"


@pytest.mark.parametrize(
    ("settings", "heading"),
    [(WebSettings, "Both services:"), (RegistrySettings, "Registry:"), (TokenSettings, "Token service:")],
)
def test_documented_settings_are_the_ones_that_are_read(settings: type[Settings], heading: str) -> None:
    section = DOCUMENT.read_text().split(f"\n{heading}\n")[1].split("\n\n")[0]
    documented = set(re.findall(r"^\| `(ENTREPOT_[A-Z_]+)` ", section, re.MULTILINE))
    assert documented == {settings.prefix + field.name.upper() for field in dataclasses.fields(settings)}
