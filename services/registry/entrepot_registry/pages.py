"""Listings that come in pages: what a query asks for, and the Link that leads to the next page."""

from __future__ import annotations

from urllib.parse import urlencode

from multidict import MultiMapping
from yarl import URL

from entrepot.oci.link import format_next
from entrepot.oci.paging import Page, PaginationInvalid, parse_page
from entrepot.web.calls import Call

__all__ = ["next_page", "page_of", "query_of"]


def query_of(call: Call) -> MultiMapping[str]:
    """The parameters of a request's query, decoded."""
    return URL.build(query_string=call.query, encoded=True).query


def page_of(call: Call, *, default: int, maximum: int) -> Page:
    """Which page a request asks for. Raises PaginationInvalid."""
    query = query_of(call)
    if len(query.getall("n", ())) > 1 or len(query.getall("last", ())) > 1:
        raise PaginationInvalid("'n' and 'last' are given once at most")
    return parse_page(query.get("n"), query.get("last"), default=default, maximum=maximum)


def next_page(path: str, **parameters: object) -> dict[str, str]:
    """The header that leads on. `path` is made of names and digests, which need no escape."""
    return {"Link": format_next(f"{path}?{urlencode(parameters, doseq=True)}")}
