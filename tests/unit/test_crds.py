"""The custom resource definitions as files: complete, bounded, described, documented, and in step with the code.

What only an API server can tell, CEL and defaulting, is in tests/cluster.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from entrepot.content.durations import parse_duration
from entrepot.oci.reference import parse_name

TOP = Path(__file__).parents[2]
CRDS = {
    crd["spec"]["names"]["kind"]: crd
    for crd in (yaml.safe_load(file.read_text()) for file in sorted((TOP / "crds").glob("*.yaml")))
}
KINDS = {"Remote": "eremote", "Repository": "erepo", "Distribution": "edist", "RepositoryVersion": "erv"}
EXAMPLES = [
    pytest.param(document, id=f"{file.relative_to(TOP)}:{document['kind']}")
    for file in sorted((TOP / "examples").rglob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text())
]
NOT_YET = "Not supported yet."
SECRET_HOLDERS = re.compile(r"(?i)password|token|secret$")


@dataclass(frozen=True)
class Field:
    kind: str
    path: str
    schema: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


def version(kind: str) -> dict[str, Any]:
    (only,) = CRDS[kind]["spec"]["versions"]
    assert isinstance(only, dict)
    return only


def schema(kind: str) -> dict[str, Any]:
    found = version(kind)["schema"]["openAPIV3Schema"]
    assert isinstance(found, dict)
    return found


def walk(kind: str, node: dict[str, Any], path: str = "") -> Iterator[Field]:
    """The node and all below it; a list's items are `path[]`, a map's values `path{}`."""
    yield Field(kind, path, node)
    for name, child in node.get("properties", {}).items():
        yield from walk(kind, child, f"{path}.{name}".lstrip("."))
    if "items" in node:
        yield from walk(kind, node["items"], f"{path}[]")
    if "additionalProperties" in node:
        yield from walk(kind, node["additionalProperties"], f"{path}{{}}")


FIELDS = [field for kind in CRDS for field in walk(kind, schema(kind))]


def test_there_are_exactly_the_four_kinds() -> None:
    assert {kind: crd["spec"]["names"]["shortNames"] for kind, crd in CRDS.items()} == {
        kind: [short] for kind, short in KINDS.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_is_declared_as_all_of_ours_are(kind: str) -> None:
    crd = CRDS[kind]
    names = crd["spec"]["names"]
    assert crd["spec"]["group"] == "entrepot.dev"
    assert crd["spec"]["scope"] == "Namespaced"
    assert crd["metadata"]["name"] == f"{names['plural']}.entrepot.dev"
    assert (TOP / "crds" / f"entrepot.dev_{names['plural']}.yaml").is_file()
    assert names["categories"] == ["entrepot"]
    assert names["listKind"] == f"{kind}List"
    assert version(kind)["name"] == "v1alpha1"
    assert version(kind)["subresources"] == {"status": {}}
    assert schema(kind)["required"] == ["spec"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_end_with_ready_status_and_age(kind: str) -> None:
    columns = version(kind)["additionalPrinterColumns"]
    assert all(column["description"].endswith(".") for column in columns)
    shown = [(column["name"], column["jsonPath"]) for column in columns if not column.get("priority")]
    assert len(shown) > 3
    assert shown[-3:] == [
        ("Ready", '.status.conditions[?(@.type=="Ready")].status'),
        ("Status", '.status.conditions[?(@.type=="Ready")].message'),
        ("Age", ".metadata.creationTimestamp"),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_columns_show_fields_that_exist(kind: str) -> None:
    paths = {field.path for field in FIELDS if field.kind == kind}
    for column in version(kind)["additionalPrinterColumns"]:
        path = re.sub(r"\[\?\(.*?\)\]|\[0\]", "[]", column["jsonPath"]).lstrip(".")
        assert path in paths or path == "metadata.creationTimestamp", column


@pytest.mark.parametrize("kind", KINDS)
def test_the_status_is_kstatus(kind: str) -> None:
    status = schema(kind)["properties"]["status"]
    assert status["default"] == {"observedGeneration": -1}
    conditions = status["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    items = conditions["items"]
    assert sorted(items["required"]) == ["lastTransitionTime", "message", "reason", "status", "type"]
    limits = {
        name: {key: value for key, value in field.items() if key != "description"}
        for name, field in items["properties"].items()
    }
    condition_type = limits["type"].pop("pattern")
    assert re.fullmatch(condition_type, "Ready")
    assert re.fullmatch(condition_type, "entrepot.dev/InUse")
    assert not re.fullmatch(condition_type, "not ready")
    assert limits == {
        "type": {"type": "string", "maxLength": 316},
        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
        "reason": {
            "type": "string",
            "minLength": 1,
            "maxLength": 1024,
            "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        },
        "message": {"type": "string", "maxLength": 32768},
        "lastTransitionTime": {"type": "string", "format": "date-time"},
        "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
    }


@pytest.mark.parametrize("field", FIELDS, ids=str)
def test_every_field_is_described_and_bounded(field: Field) -> None:
    node = field.schema
    assert node.get("description", "").endswith((".", ")")), "without a description that is a sentence"
    assert "nullable" not in node
    assert "x-kubernetes-preserve-unknown-fields" not in node
    assert not SECRET_HOLDERS.search(field.path), "Secrets are referenced, never inlined"
    match node["type"]:
        case "string":
            assert "maxLength" in node or "enum" in node or node.get("format") == "date-time"
        case "array":
            assert "maxItems" in node
            assert node["x-kubernetes-list-type"] in {"atomic", "set", "map"}
        case "integer":
            assert node["format"] in {"int32", "int64"}
            if field.path.startswith("spec."):
                assert "minimum" in node
        case "object":
            assert "properties" in node or "maxProperties" in node
        case other:
            assert other == "boolean"
    if "default" in node and "enum" in node:
        assert node["default"] in node["enum"]
    if "pattern" in node:
        re.compile(node["pattern"])


@pytest.mark.parametrize("field", [field for field in FIELDS if "x-kubernetes-validations" in field.schema], ids=str)
def test_every_rule_says_in_words_what_it_wants(field: Field) -> None:
    for rule in field.schema["x-kubernetes-validations"]:
        assert len(rule["message"]) > 20
        assert "\n" not in rule["message"]


def test_defaults_are_those_of_the_design_and_no_others() -> None:
    defaults = {
        f"{field.kind} {field.path}": field.schema["default"]
        for field in FIELDS
        if "default" in field.schema and field.path != "status"
    }
    assert defaults == {
        "Repository spec.mirror.policy": "Immediate",
        "Repository spec.mirror.mode": "Additive",
        "Repository spec.mirror.missingChildren": "NotFound",
        "Repository spec.mirror.companions": True,
        "Repository spec.mirror.foreignLayers": False,
        "Repository spec.mirror.maxRemovedPercent": 50,
        "Repository spec.retention": {},
        "Repository spec.retention.versions": {},
        "Repository spec.retention.versions.policy": "Count",
        "Repository spec.retention.versions.count": 20,
        "Repository spec.retention.versions.minAge": "168h",
    }


def rules(text: str) -> list[str]:
    """The regular expressions in the rules of all fields whose rule contains `text`."""
    found = [
        rule["rule"]
        for field in FIELDS
        for rule in field.schema.get("x-kubernetes-validations", ())
        if text in rule["rule"]
    ]
    return [match[1] for rule in found if (match := re.search(r"matches\('(.*?)'\)", rule))]


def test_durations_and_names_are_written_one_way_everywhere() -> None:
    assert len(rules("duration(self)")) == 6
    assert len(set(rules("duration(self)"))) == 1
    names = rules("(/[a-z0-9]+")
    assert len(names) == 2
    assert len(set(names)) == 1


@given(st.from_regex(rules("duration(self)")[0], fullmatch=True).filter(lambda text: len(text) <= 20))
def test_a_duration_that_the_schema_takes_the_code_takes_too(text: str) -> None:
    parse_duration(text, maximum=timedelta.max)


@given(st.from_regex(rules("(/[a-z0-9]+")[0], fullmatch=True).filter(lambda text: len(text) <= 255))
def test_a_name_that_the_schema_takes_the_code_takes_too(text: str) -> None:
    assert parse_name(text) == text


# --- Documentation ---------------------------------------------------------------------------------------------------


def page(kind: str) -> str:
    return (TOP / "docs" / "resources" / f"{kind.lower()}.md").read_text()


def documented(field: Field) -> bool:
    """A reference's name, a map's values and a condition's parts are explained where their parent is."""
    parent = next(
        (other for other in FIELDS if other.kind == field.kind and other.path == field.path.rpartition(".")[0]), None
    )
    inside_reference = (
        parent is not None and parent.schema.get("x-kubernetes-map-type") == "atomic" and field.path.endswith(".name")
    )
    return not inside_reference and not field.path.endswith(("[]", "{}")) and ".conditions[]" not in field.path


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_the_spec_has_a_heading_in_the_documentation(kind: str) -> None:
    headings = set(re.findall(r"^#{3,5} `([^`]+)`", page(kind), re.MULTILINE))
    wanted = {
        field.path.removeprefix("spec.")
        for field in FIELDS
        if field.kind == kind and field.path.startswith("spec.") and documented(field)
    }
    assert headings == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_the_status_is_in_the_documentation(kind: str) -> None:
    text = page(kind).partition("\n## Status")[2]
    for field in FIELDS:
        if field.kind == kind and field.path.startswith("status.") and documented(field):
            name = field.path.removeprefix("status.")
            parent, _, last = name.rpartition(".")
            assert f"`{name}`" in text or (f"`{parent}`" in text and f"`{last}`" in text), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_supported_yet_is_listed_in_the_documentation(kind: str) -> None:
    said = page(kind).partition("\n## Not supported yet")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `([^`]+)`", said, re.MULTILINE))
    marked = {
        field.path.removeprefix("spec."): field.schema["description"]
        for field in FIELDS
        if field.kind == kind and field.schema["description"].endswith(NOT_YET) and documented(field)
    }
    # What follows a colon is about some values only; otherwise the field as a whole, with all that is in it.
    whole = [path for path, description in marked.items() if not description.endswith(f": {NOT_YET}")]
    wanted = {path for path in marked if not any(path.startswith((f"{other}.", f"{other}[]")) for other in whole)}
    assert listed == wanted


# --- Examples --------------------------------------------------------------------------------------------------------


def closed(node: dict[str, Any]) -> dict[str, Any]:
    """The schema with unknown fields refused, as the API server does it for kubectl."""
    result = {key: value for key, value in node.items() if not key.startswith("x-kubernetes-")}
    if "properties" in node:
        result["properties"] = {name: closed(child) for name, child in node["properties"].items()}
        result["additionalProperties"] = False
    if "items" in node:
        result["items"] = closed(node["items"])
    return result


@pytest.mark.parametrize("document", EXAMPLES)
def test_the_examples_are_valid(document: dict[str, Any]) -> None:
    if document["kind"] == "Namespace":
        return
    assert document["metadata"]["namespace"] == "demo"
    if document["kind"] not in KINDS:
        assert not document["apiVersion"].startswith("entrepot.dev/")
        return
    assert document["apiVersion"] == "entrepot.dev/v1alpha1"
    jsonschema.Draft202012Validator(closed(schema(document["kind"])["properties"]["spec"])).validate(document["spec"])


def test_the_examples_are_applied_in_the_order_of_their_names() -> None:
    kinds = [yaml.safe_load(file.read_text())["kind"] for file in sorted((TOP / "examples").glob("*.yaml"))]
    assert kinds == ["Namespace", "Remote", "Repository", "Distribution"]
