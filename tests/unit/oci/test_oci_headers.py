"""WWW-Authenticate, Link, Content-Type and error bodies."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot.oci import media_types
from entrepot.oci.challenge import Challenge, ChallengeInvalid, format_bearer, parse_challenges
from entrepot.oci.errors import ERROR_DEFAULTS, ErrorCode, error_body, excerpt
from entrepot.oci.link import LinkInvalid, format_next, next_url
from entrepot.oci.media_types import is_foreign_layer, parse_content_type

PRINTABLE = st.text(
    alphabet=st.characters(min_codepoint=0x20, exclude_characters="\x7f", exclude_categories=("Cs", "Cc"))
)
TOKENS = st.text(alphabet=string.ascii_letters + string.digits + "-_.", min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", ()),
        (" , ,", ()),
        ("Negotiate", (Challenge("negotiate"),)),
        ("Negotiate, Basic realm=x", (Challenge("negotiate"), Challenge("basic", None, {"realm": "x"}))),
        ("NTLM YWJj==, Basic", (Challenge("ntlm", "YWJj=="), Challenge("basic"))),
        (
            'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"',
            (
                Challenge(
                    "bearer",
                    None,
                    {
                        "realm": "https://auth.docker.io/token",
                        "service": "registry.docker.io",
                        "scope": "repository:a/b:pull,push",
                    },
                ),
            ),
        ),
        (
            'Basic realm="a, Bearer b=c" , BEARER Realm = "https://x/?a=b&c=d\\"e\\\\" ,, error=invalid_token',
            (
                Challenge("basic", None, {"realm": "a, Bearer b=c"}),
                Challenge("bearer", None, {"realm": 'https://x/?a=b&c=d"e\\', "error": "invalid_token"}),
            ),
        ),
        (
            "Bearer realm=https://x/token?a=b,service=y",
            (Challenge("bearer", None, {"realm": "https://x/token?a=b", "service": "y"}),),
        ),
        ('Basic realm="", Negotiate', (Challenge("basic", None, {"realm": ""}), Challenge("negotiate"))),
    ],
)
def test_challenges_are_read_as_written(header: str, expected: tuple[Challenge, ...]) -> None:
    assert parse_challenges(header) == expected


def test_several_headers_are_one_list() -> None:
    assert [c.scheme for c in parse_challenges(['Basic realm="a"', 'Bearer realm="b",service="c"'])] == [
        "basic",
        "bearer",
    ]


@pytest.mark.parametrize(
    "header",
    ['Bearer realm="open', 'Bearer realm="a" b', 'Bearer realm="a", realm="b"', "=x", '"a"', "Bearer a=1, realm=,x", "x" * 20_000,
     ", ".join(["A"] * 20), "Bearer " + ",".join(f"p{i}=1" for i in range(40)), 'Basic realm="a\nb"'],
)  # fmt: skip
def test_what_cannot_be_read_exactly_is_refused(header: str) -> None:
    with pytest.raises(ChallengeInvalid):
        parse_challenges(header)


@given(
    PRINTABLE, PRINTABLE, st.none() | PRINTABLE, st.none() | st.sampled_from(["invalid_token", "insufficient_scope"])
)
def test_a_bearer_challenge_reads_back_as_what_was_said(
    realm: str, service: str, scope: str | None, error: str | None
) -> None:
    header = format_bearer(realm=realm, service=service, scope=scope, error=error)
    said = {"realm": realm, "service": service, "scope": scope, "error": error}
    expected = Challenge("bearer", None, {name: value for name, value in said.items() if value is not None})
    assert parse_challenges(header) == (expected,)
    assert parse_challenges([header, header]) == (expected, expected)


@given(st.text() | st.text(alphabet='Bb ,="\\\t;<>a'))
def test_any_text_is_challenges_or_refused(text: str) -> None:
    try:
        parse_challenges(text)
    except ChallengeInvalid as error:
        message = str(error)
    else:
        return
    assert len(message) < 1000


def test_a_challenge_cannot_be_split_by_what_it_holds() -> None:
    with pytest.raises(ValueError, match="control"):
        format_bearer(realm="a\r\nSet-Cookie: x", service="b")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", None),
        ([], None),
        ('</v2/a/tags/list?n=2&last=b>; rel="next"', "/v2/a/tags/list?n=2&last=b"),
        ("<https://x/y,z;w>;rel=next", "https://x/y,z;w"),
        ('</a>; rel="prev", </b>; title="x, <y>; rel=\\"next\\""; REL="first NEXT"', "/b"),
        (['</a>; rel="prev"', '</b>; rel="next"'], "/b"),
        ('</a>; rel="prev"', None),
        ('</a>; rel="prev"; rel="next"', None),
        ('</a>; rel="next"; anchor="/other"', None),
        ("</a>", None),
        ('</a>; ; rel="next";', "/a"),
    ],
)
def test_the_next_page_is_found(header: str | list[str], expected: str | None) -> None:
    assert next_url(header) == expected


@pytest.mark.parametrize(
    "header",
    ["/a; rel=next", "<>; rel=next", "</a; rel=next", '</a>; rel="next', "</a> rel=next", "<\\\\evil/a>; rel=next", "</ä>; rel=next",
     "</a b>; rel=next", "x" * 20_000, ", ".join(["</a>"] * 100)],
)  # fmt: skip
def test_an_unreadable_link_is_an_error_and_not_the_last_page(header: str) -> None:
    with pytest.raises(LinkInvalid):
        next_url(header)


@given(st.from_regex(r"/[a-z0-9/?&=%._,;~-]{0,40}", fullmatch=True))
def test_a_link_reads_back_as_what_was_written(url: str) -> None:
    assert next_url(format_next(url)) == url


@given(st.text() | st.text(alphabet='<>/a;="\\ ,relnxt'))
def test_any_text_is_a_link_or_none_or_refused(text: str) -> None:
    try:
        next_url(text)
    except LinkInvalid as error:
        message = str(error)
    else:
        return
    assert len(message) < 1000


def test_a_link_is_not_made_of_what_is_no_url() -> None:
    for url in ("/a b", '/a"', "/a>", "/a\r\nx", "/ä"):
        with pytest.raises(ValueError, match="encoded"):
            format_next(url)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("text", None),
        ("a/b/c", None),
        ("a/b, c/d", None),
        ("application/json; charset=utf-8", "application/json"),
        ("Application/VND.oci.image.index.v1+JSON", media_types.OCI_INDEX),
        (" text/plain ;x", "text/plain"),
        ("a/" + "b" * 2000, None),
    ],
)
def test_a_content_type_is_read_without_its_parameters(value: str | None, expected: str | None) -> None:
    assert parse_content_type(value) == expected


def test_upstreams_are_asked_for_all_manifests_that_can_be_stored_and_for_no_other() -> None:
    assert set(media_types.ACCEPT.split(", ")) == media_types.MANIFEST_TYPES
    assert not media_types.MANIFEST_TYPES & media_types.SCHEMA1_TYPES
    assert is_foreign_layer(media_types.DOCKER_FOREIGN_LAYER_GZIP)
    assert not is_foreign_layer(media_types.OCI_LAYER_GZIP)


@given(st.sampled_from(sorted(ErrorCode)), st.none() | st.text(), st.none() | st.dictionaries(TOKENS, st.text()))
def test_an_error_body_has_the_specifications_form(code: ErrorCode, message: str | None, detail: object) -> None:
    body = json.loads(error_body(code, message, detail))
    expected = {"code": code.value, "message": ERROR_DEFAULTS[code].message if message is None else message}
    assert body == {"errors": [expected | ({} if detail is None else {"detail": detail})]}


def test_every_code_has_a_default_and_a_stray_surrogate_does_no_harm() -> None:
    assert set(ERROR_DEFAULTS) == set(ErrorCode)
    assert error_body("NAME_INVALID", "\udc80").isascii()
    assert json.loads(error_body("SOMETHING_ELSE"))["errors"][0] == {"code": "SOMETHING_ELSE", "message": ""}
    assert excerpt("a\nb" * 100, 4) == "'a\\nba'…"
