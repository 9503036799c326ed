"""Fields that the API has and this release does not act on yet.

Accepting them silently would be a lie about what is going on, so an object that sets one is Stalled `NotYetSupported`. One table a kind, each
row a path and what is acted on; a field leaves its table when it comes alive.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from entrepot.errors import Stalled
from entrepot_operator.kinds import REMOTE, REPOSITORY, Kind

__all__ = ["NOT_YET", "check_supported"]

NOT_YET: Final[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {
    REMOTE.name: {
        "proxy": (),
        "rateLimit": (),
        "sigstoreURL": (),
    },
    REPOSITORY.name: {
        "mirror.sources[].platforms": ([],),
        "mirror.policy": ("Immediate",),
        "mirror.mode": ("Additive",),
        "mirror.missingChildren": ("NotFound",),
        "mirror.companions": (True,),
        "mirror.signedOnly": (False,),
        "mirror.foreignLayers": (False,),
        "mirror.schedule": (),
        "mirror.timeZone": (),
        "mirror.maxRemovedPercent": (50,),
        "retention.versions.policy": ("Count",),
        "retention.versions.count": (20,),
        "retention.versions.minAge": ("168h",),
        "retention.tags": ([],),
        "retention.untaggedAfter": (),
        "accessFrom": (),
    },
}
"""By kind: field of the spec, and the values besides absence that are acted on."""

_SHOWN = 100


def check_supported(kind: Kind, spec: Mapping[str, Any]) -> None:
    """Raise Stalled, naming field and value, if a field is set that nothing acts on yet."""
    for path, allowed in NOT_YET[kind.name].items():
        for where, value in _values(spec, path.split("."), "spec"):
            # `1 == True` in Python, but not in an API.
            if not any(type(value) is type(known) and value == known for known in allowed):
                shown = json.dumps(value)
                shown = shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"
                raise Stalled(
                    f"{where}: {shown} is not supported yet; remove it"
                    + (f" or use {json.dumps(allowed[0])}" if allowed else ""),
                    reason="NotYetSupported",
                )
    if kind is REPOSITORY and len(sources := (spec.get("mirror") or {}).get("sources") or ()) > 1:
        raise Stalled(
            f"spec.mirror.sources: {len(sources)} entries are not supported yet; make one Repository a source",
            reason="NotYetSupported",
        )


def _values(value: Any, path: list[str], where: str) -> Iterator[tuple[str, Any]]:
    if not path:
        yield where, value
        return
    field, *rest = path
    name = field.removesuffix("[]")
    found = value.get(name) if isinstance(value, Mapping) else None
    if found is None:
        return
    if field.endswith("[]"):
        for position, entry in enumerate(found):
            yield from _values(entry, rest, f"{where}.{name}[{position}]")
    else:
        yield from _values(found, rest, f"{where}.{name}")
