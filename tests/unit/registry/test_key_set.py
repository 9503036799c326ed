"""How long the registry trusts keys that the token service stopped publishing."""

from __future__ import annotations

from datetime import timedelta

import pytest
from aiohttp import ClientSession
from cryptography.hazmat.primitives.asymmetric import ec

from entrepot_registry.keys import KeySet, PublicKey
from entrepot_registry.metrics import RegistryMetrics
from entrepot_registry.settings import RegistrySettings


@pytest.mark.parametrize(("kept", "expected"), [(timedelta(minutes=5), {"a", "b"}), (timedelta(0), {"b"})])
async def test_a_key_that_is_gone_verifies_for_a_while(
    monkeypatch: pytest.MonkeyPatch, kept: timedelta, expected: set[str]
) -> None:
    published = ["a"]

    async def fetch() -> dict[str, PublicKey]:
        return {
            name: PublicKey(name, "ES256", ec.generate_private_key(ec.SECP256R1()).public_key()) for name in published
        }

    async with ClientSession() as session:
        keys = KeySet(session, RegistrySettings(keys_kept=kept), fetches=RegistryMetrics().key_fetches)
        monkeypatch.setattr(keys, "_fetch", fetch)
        await keys._refresh()
        published[:] = ["b"]
        await keys._refresh()
        assert set(keys._keys) == expected
