"""Tag filters and durations."""

from __future__ import annotations

import fnmatch
import re
import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.content.durations import PATTERN, DurationInvalid, format_duration, parse_duration
from entrepot.content.filters import FilterInvalid, TagFilter
from entrepot.oci.digest import Digest

DIGEST = Digest.of(b"")
PATTERNS = st.lists(st.text(alphabet="ab1.-*?[]!", min_size=1, max_size=8), max_size=5)
TAGS = st.text(alphabet="ab1.-", min_size=1, max_size=8)


@given(PATTERNS, PATTERNS, TAGS)
def test_includes_come_first_and_then_excludes(include: list[str], exclude: list[str], tag: str) -> None:
    included = not include or any(fnmatch.fnmatchcase(tag, pattern) for pattern in include)
    excluded = any(fnmatch.fnmatchcase(tag, pattern) for pattern in exclude)
    assert TagFilter(tuple(include), tuple(exclude)).selects(tag) is (included and not excluded)


@given(PATTERNS, PATTERNS, TAGS)
def test_exact_names_are_all_that_can_be_selected(include: list[str], exclude: list[str], tag: str) -> None:
    chosen = TagFilter(tuple(include), tuple(exclude))
    names = chosen.exact_names
    if names is not None:
        assert all(map(chosen.selects, names))
        if not tag.startswith((".", "-")):
            assert chosen.selects(tag) is (tag in names)


def test_a_filter_without_entries_selects_everything_and_needs_a_listing() -> None:
    assert TagFilter().selects("latest")
    assert TagFilter().exact_names is None
    assert TagFilter(("v1", "v*")).exact_names is None
    assert TagFilter(("v1", "v2", "not a tag"), ("v2",)).exact_names == frozenset({"v1"})


def test_upper_and_lower_case_differ() -> None:
    assert not TagFilter(("V*",)).selects("v1")


def test_digests_select_manifests_and_no_tags() -> None:
    chosen = TagFilter((str(DIGEST), str(DIGEST)))
    assert chosen.digests == (DIGEST,)
    assert chosen.exact_names == frozenset()
    assert not chosen.selects("latest")
    assert TagFilter((str(DIGEST), "v*")).selects("v1")


@pytest.mark.parametrize("include", [("sha256:bad",), ("",), ("a" * 256,), tuple(f"t{i}" for i in range(1001))])
def test_an_unusable_entry_is_refused(include: tuple[str, ...]) -> None:
    with pytest.raises(FilterInvalid):
        TagFilter(include)
    assert TagFilter(include[:0]) == TagFilter()


def test_one_string_is_not_a_list_of_letters() -> None:
    with pytest.raises(TypeError):
        TagFilter("latest")  # type: ignore[arg-type]


def test_fifty_thousand_tags_against_hostile_wildcards_take_little_time() -> None:
    chosen = TagFilter(("*a" * 100 + "b",), tuple(f"v{i}" for i in range(900)))
    begin = time.perf_counter()
    assert not chosen.selects("a" * 128)
    plain = TagFilter(("v1.*", "release-?"), ("*-rc*",))
    assert sum(plain.selects(f"v1.{i}") for i in range(50_000)) == 50_000
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0s", 0), ("90s", 90), ("1h30m", 5400), ("1.5h", 5400), ("250ms", 0.25), ("1m1m", 120), ("0.1s", 0.1)],
)
def test_durations_are_read_as_go_reads_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "h",
        "-1s",
        "+1s",
        "1d",
        "1 h",
        "1h ",
        "1h\n",
        "1.s",
        ".5s",
        "1us",
        "٣s",
        "1e3s",
        "1s" * 40,
        "9" * 50 + "h",
    ],
)
def test_what_is_not_a_duration_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(DurationInvalid, match=r"is not a duration|longer than the maximum"):
        parse_duration(text)


def test_a_duration_above_the_callers_maximum_is_refused() -> None:
    assert parse_duration("1h", maximum=timedelta(hours=1)) == timedelta(hours=1)
    with pytest.raises(DurationInvalid, match="maximum, 1h"):
        parse_duration("1h1ms", maximum=timedelta(hours=1))


@given(st.integers(0, 3650 * 86_400_000))
def test_a_duration_reads_back_as_what_was_written(milliseconds: int) -> None:
    duration = timedelta(milliseconds=milliseconds)
    text = format_duration(duration)
    assert parse_duration(text) == duration
    assert re.fullmatch(PATTERN, text)


@given(st.text() | st.text(alphabet="0123456789.hms"))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        duration = parse_duration(text)
    except DurationInvalid:
        return
    assert timedelta(0) <= duration <= timedelta(days=3650)


def test_a_negative_duration_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="negative"):
        format_duration(timedelta(seconds=-1))
