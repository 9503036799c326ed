"""Logging of every part: one JSON object a line on standard output, through structlog, the standard library's loggers included."""

from __future__ import annotations

import logging
import sys

import structlog

__all__ = ["configure"]

_INDISCREET = ("aiobotocore", "botocore", "kubernetes", "opentelemetry", "requests", "urllib3")
"""Libraries whose debug messages hold signatures of requests, signed addresses or bodies of Secrets: they say nothing below info."""


def configure(level: str = "info", *, json: bool = True) -> None:
    """Set up logging for the process. `level` is debug, info, warning or error."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    # Tracebacks without local variables, which may hold credentials; structlog's ready-made processor shows them.
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    renderer: list[structlog.typing.Processor] = (
        [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
        if json
        else [structlog.dev.ConsoleRenderer()]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _INDISCREET:
        logging.getLogger(name).setLevel(max(root.level, logging.INFO))
