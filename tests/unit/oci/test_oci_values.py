"""Ranges, pages and scopes."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.oci.paging import Page, PaginationInvalid, parse_page
from entrepot.oci.ranges import (
    ByteRange,
    RangeNotSatisfiable,
    UploadRangeInvalid,
    content_range,
    parse_range,
    parse_upload_range,
    upload_range,
)
from entrepot.oci.scope import Scope, ScopeInvalid, format_scopes, parse_scope, parse_scopes


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=500-1499", (500, 1499)),
        ("bytes=500-", (500, 2047)),
        ("bytes=-500", (1548, 2047)),
        ("bytes=2000-5000", (2000, 2047)),
        ("bytes=0-0", (0, 0)),
        ("bytes=-5000", (0, 2047)),
        ("Bytes= 1-2 ", (1, 2)),
        ("bytes=0-" + "9" * 40, (0, 2047)),
    ],
)
def test_a_range_of_2048_bytes_is_cut_to_what_is_there(value: str, expected: tuple[int, int]) -> None:
    assert parse_range(value, 2048) == ByteRange(*expected)


@pytest.mark.parametrize(
    "value", ["bytes=500-0", "bytes=5000-10000", "bytes=2048-", "bytes=-0", "bytes=" + "9" * 40 + "-"]
)
def test_a_range_outside_of_2048_bytes_is_not_satisfiable(value: str) -> None:
    with pytest.raises(RangeNotSatisfiable) as caught:
        parse_range(value, 2048)
    assert caught.value.status == 416
    assert content_range(None, caught.value.size) == "bytes */2048"


@pytest.mark.parametrize(
    "value", [None, "", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=1-2,4-5", "items=0-1", "bytes=٣-", "bytes=--1", "bytes=1-2" + " " * 200]
)  # fmt: skip
def test_what_is_not_one_range_of_bytes_means_the_whole_body(value: str | None) -> None:
    assert parse_range(value, 2048) is None


def test_ranges_of_nothing() -> None:
    assert parse_range("bytes=-5", 0) is None
    with pytest.raises(RangeNotSatisfiable):
        parse_range("bytes=0-", 0)


@given(st.text() | st.from_regex(r"bytes=[0-9]{0,25}-[0-9]{0,25}"), st.integers(0, 2**63 - 1))
def test_a_range_always_lies_within_the_content(value: str, size: int) -> None:
    try:
        part = parse_range(value, size)
    except RangeNotSatisfiable:
        return
    if part is not None:
        assert 0 <= part.start <= part.end < size
        assert 1 <= part.length <= size
        assert content_range(part, size) == f"bytes {part.start}-{part.end}/{size}"


@given(st.integers(0, 2**62), st.integers(0, 2**62))
def test_the_range_of_a_chunk_is_read_exactly(start: int, more: int) -> None:
    assert parse_upload_range(f"{start}-{start + more}") == ByteRange(start, start + more)


@pytest.mark.parametrize("value", ["", "-", "1-", "-1", "5-4", "bytes 0-1/2", "0-1\n", "0 -1", "0-" + "9" * 20])
def test_the_range_of_a_chunk_is_never_guessed(value: str) -> None:
    with pytest.raises(UploadRangeInvalid):
        parse_upload_range(value)


def test_the_range_of_an_upload_says_how_much_has_arrived() -> None:
    assert [upload_range(size) for size in (0, 1, 5)] == ["0-0", "0-0", "0-4"]


@pytest.mark.parametrize(
    ("n", "expected"), [(None, 100), ("0", 0), ("7", 7), ("1000", 1000), ("2147483648", 1000), ("9" * 60, 1000)]
)
def test_a_page_is_as_long_as_asked_for_but_never_longer_than_the_maximum(n: str | None, expected: int) -> None:
    assert parse_page(n, None, default=100, maximum=1000) == Page(expected, None)


@pytest.mark.parametrize("n", ["", "-1", "+1", "1.0", "abc", " 1", "1\n", "٣", "1_0", "9" * 5000])
def test_what_is_no_number_is_refused(n: str) -> None:
    with pytest.raises(PaginationInvalid):
        parse_page(n, None, default=100, maximum=1000)


def test_last_is_the_name_of_something() -> None:
    assert parse_page(None, "v1.0", default=1, maximum=1).last == "v1.0"
    assert parse_page(None, "", default=1, maximum=1).last is None
    for last in ("a\0b", "\udc80", "a b", "x" * 256):
        with pytest.raises(PaginationInvalid):
            parse_page(None, last, default=1, maximum=1)


@given(st.none() | st.text(), st.none() | st.text())
def test_any_query_is_a_page_or_refused(n: str | None, last: str | None) -> None:
    try:
        page = parse_page(n, last, default=100, maximum=1000)
    except PaginationInvalid:
        return
    assert 0 <= page.limit <= 1000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("repository:a/b:pull", Scope("repository", "a/b", frozenset({"pull"}))),
        ("repository:a:push,pull", Scope("repository", "a", frozenset({"pull", "push"}))),
        ("repository(plugin):a:pull", Scope("repository", "a", frozenset({"pull"}))),
        ("repository:host.example:5000/a:pull", Scope("repository", "host.example:5000/a", frozenset({"pull"}))),
        ("registry:catalog:*", Scope("registry", "catalog", frozenset({"*"}))),
    ],
)
def test_scopes_are_read_as_written(value: str, expected: Scope) -> None:
    assert parse_scope(value) == expected


@pytest.mark.parametrize(
    "value",
    ["", ":", "::", "repository:a", "repository:a:", "repository::pull", "repository:*:pull", "repository:a/../b:pull",
     "repository:a%2fb:pull", "repository:A:pull", "Repository:a:pull", "repository:a:Pull", "repository:a:pull,", "repository(a:b:pull",
     "repository:a:" + "a," * 50 + "a", "repository:" + "a" * 600 + ":pull", "repository:a/b:5000/c:pull:x:"],
)  # fmt: skip
def test_what_is_not_a_scope_is_refused(value: str) -> None:
    with pytest.raises(ScopeInvalid):
        parse_scope(value)


def test_scopes_are_joined_by_resource_in_the_order_of_first_mention() -> None:
    scopes = parse_scopes(["repository:b:pull repository:a:pull", "repository:b:push", ""])
    assert format_scopes(scopes) == "repository:b:pull,push repository:a:pull"
    assert parse_scopes(format_scopes(scopes)) == scopes
    assert parse_scopes("") == ()


@given(st.text() | st.text(alphabet="repository:ab/.,-_() pul"))
def test_any_text_is_scopes_that_write_themselves_back_or_is_refused(text: str) -> None:
    try:
        scopes = parse_scopes(text)
    except ScopeInvalid:
        return
    assert parse_scopes(format_scopes(scopes)) == scopes


def test_a_request_names_a_bounded_number_of_scopes_in_bounded_time() -> None:
    begin = time.perf_counter()
    for hostile in (" ".join(f"repository:a{i}:pull" for i in range(65)), "a" * 20_000, "repository:" + "a" * 511 + "!:pull",
                    "repository:" + "a." * 255 + "!:pull", "repository:" + "a-" * 255 + ":pull"):  # fmt: skip
        with pytest.raises(ScopeInvalid):
            parse_scopes(hostile)
    assert time.perf_counter() - begin < 0.5
