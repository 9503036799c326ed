"""The rules of kstatus as a check: what must hold of any object's conditions at any time, whatever the operator is doing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["violations"]

_ABNORMAL = ("Reconciling", "Stalled")


def violations(body: Mapping[str, Any]) -> list[str]:
    """Broken rules, in words; empty if all hold. `body` has metadata.generation and status."""
    status, generation = body["status"], body["metadata"]["generation"]
    conditions = {c["type"]: c for c in status["conditions"]}
    if len(conditions) != len(status["conditions"]):
        return ["a type is there twice"]
    if "Ready" not in conditions:
        return ["Ready is missing"]
    settled = status["observedGeneration"] == generation
    return [
        *_of_types(conditions),
        *_of_ready(conditions, settled=settled),
        *_of_stalled(conditions, settled=settled),
        *(rule for condition in conditions.values() for rule in _of_each(condition, status, generation)),
    ]


def _of_types(conditions: Mapping[str, Any]) -> list[str]:
    broken = [f"{kind} is unknown" for kind in conditions if kind != "Ready" and kind not in _ABNORMAL]
    there = [kind for kind in conditions if kind in _ABNORMAL]
    broken += [f"{kind} is there and not True" for kind in there if conditions[kind]["status"] != "True"]
    return [*broken, "Reconciling and Stalled at once"] if len(there) > 1 else broken


def _of_ready(conditions: Mapping[str, Any], *, settled: bool) -> list[str]:
    abnormal = any(kind in conditions for kind in _ABNORMAL)
    match conditions["Ready"]["status"]:
        case "Unknown" if "Reconciling" not in conditions:
            return ["Ready Unknown without Reconciling"]
        case "False" if not abnormal:
            return ["Ready False, and neither Reconciling nor Stalled tells whether a human must act"]
        case "True" if abnormal:
            return ["Ready True beside a negative condition"]
        case "True" if not settled:
            return ["Ready True for another generation than the object's"]
    return []


def _of_stalled(conditions: Mapping[str, Any], *, settled: bool) -> list[str]:
    if "Stalled" not in conditions:
        return []
    stalled, ready = conditions["Stalled"], conditions["Ready"]
    broken = [] if settled else ["Stalled for another generation than the object's"]
    if (ready["status"], ready["reason"], ready["message"]) != ("False", stalled["reason"], stalled["message"]):
        broken.append("Ready does not repeat why it is Stalled")
    return broken


def _of_each(condition: Mapping[str, Any], status: Mapping[str, Any], generation: int) -> list[str]:
    broken = []
    if not condition["reason"].isalnum():
        broken.append(f"{condition['type']} has no proper reason")
    if "\n" in condition["message"] or not condition["message"]:
        broken.append(f"{condition['type']} has no message of one line")
    if not status["observedGeneration"] <= condition["observedGeneration"] <= generation:
        broken.append(f"{condition['type']} was observed at another generation")
    return broken
