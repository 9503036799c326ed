"""OpenTelemetry traces, by setting: one span a request, and within it one for each statement and each call of S3.

What is here imports nothing of OpenTelemetry: without an endpoint the libraries are not loaded, and a request pays for one comparison. With
one, `entrepot.web.spans` makes the spans, and a thread of its own sends them.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol
from urllib.parse import urlsplit

from entrepot.settings import SettingInvalid, Settings
from entrepot.web.calls import Call

__all__ = ["Traces", "TracesSettings", "open_traces"]


@dataclass(frozen=True, kw_only=True)
class TracesSettings(Settings):
    """Where traces go. The library's own variables (OTEL_EXPORTER_OTLP_HEADERS, …) count as well."""

    prefix: ClassVar[str] = "ENTREPOT_TRACES_"

    endpoint: str = ""
    """An OpenTelemetry collector that takes OTLP over HTTP, as in http://collector:4318; empty: no traces."""

    sample_ratio: float = 0.1
    """The share of requests that are traced, from 0 to 1; where a client sends a traceparent, its decision counts."""

    def __post_init__(self) -> None:
        if self.endpoint and (
            urlsplit(self.endpoint).scheme not in {"http", "https"} or not urlsplit(self.endpoint).hostname
        ):
            raise SettingInvalid(
                f"{self.prefix}ENDPOINT must be http://host:port or https://host, not {self.endpoint!r}"
            )
        if not 0 <= self.sample_ratio <= 1:
            raise SettingInvalid(f"{self.prefix}SAMPLE_RATIO must be from 0 to 1, not {self.sample_ratio:g}")

    @property
    def url(self) -> str:
        """Where the exporter sends to: the path is the specification's where none is given."""
        parts = urlsplit(self.endpoint)
        return self.endpoint if parts.path.strip("/") else f"{self.endpoint.rstrip('/')}/v1/traces"


class Traces(Protocol):
    """What the web services and the parts behind them tell of."""

    def begin(self, call: Call) -> object:
        """A request has come; what follows in the same task belongs to it."""
        ...

    def end(self, call: Call, status: int, *, received: int) -> None:
        """It was answered."""
        ...

    def note(self, system: str, operation: str, *, seconds: float, error: str | None) -> None:
        """A call of something behind us (postgresql, s3) has just ended; part of the request under way, if there is one."""
        ...

    def close(self) -> None:
        """Send what is left, within seconds; blocks."""
        ...


@asynccontextmanager
async def open_traces(settings: TracesSettings, *, service: str) -> AsyncIterator[Traces | None]:
    """None where there is no endpoint."""
    if not settings.endpoint:
        yield None
        return
    # Imports and the reading of its environment block for a good part of a second.
    traces: Traces = await asyncio.to_thread(
        lambda: importlib.import_module("entrepot.web.spans").Spans(settings, service=service)
    )
    try:
        yield traces
    finally:
        await asyncio.to_thread(traces.close)
