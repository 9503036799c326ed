"""What the operator asks of a run: the JSON in its row."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec

from entrepot.content.durations import parse_duration
from entrepot.errors import EntrepotError
from entrepot.upstream.transport import Limits

__all__ = ["RunSpec", "SourceSpec", "SpecInvalid", "read_spec"]


class SpecInvalid(EntrepotError):
    """The row does not hold what this version of the syncer understands: an operator of another version wrote it."""

    default_reason = "SpecInvalid"


class SourceSpec(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A repository upstream, what is wanted of it, and how its registry wants to be spoken to."""

    remote: UUID
    url: str
    upstream_name: str
    include_tags: list[str] = []
    exclude_tags: list[str] = []
    insecure_skip_verify: bool = False
    download_concurrency: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 20
    max_retries: Annotated[int, msgspec.Meta(ge=0, le=100)] = 3
    connect_timeout: str = "10s"
    read_timeout: str = "60s"

    def limits(self) -> Limits:
        """Raises SpecInvalid."""
        try:
            connect, read = parse_duration(self.connect_timeout), parse_duration(self.read_timeout)
        except ValueError as error:
            raise SpecInvalid(f"the run's spec holds no duration where one is needed: {error}") from error
        return Limits(
            concurrency=self.download_concurrency,
            max_retries=self.max_retries,
            connect_timeout=connect,
            read_timeout=read,
        )


class RunSpec(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Unknown fields are refused: what is asked for and not understood must not be left out silently."""

    sources: Annotated[list[SourceSpec], msgspec.Meta(min_length=1, max_length=1)]
    policy: Literal["Immediate"] = "Immediate"
    mode: Literal["Additive"] = "Additive"

    @property
    def source(self) -> SourceSpec:
        return self.sources[0]


def read_spec(value: Any) -> RunSpec:
    """Raises SpecInvalid."""
    try:
        return msgspec.convert(value, RunSpec)
    except msgspec.ValidationError as error:
        raise SpecInvalid(f"the run's spec is not understood: {error}") from error
