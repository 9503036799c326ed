"""Settings: dataclasses read from the environment, the only way a part is configured.

Each field is followed by its own docstring, which is also what the documentation shows. The variable is the class's prefix and the
field's name in capitals. A wrong value stops the start with a sentence that names the variable.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from entrepot.content.durations import parse_duration

__all__ = ["DatabaseSettings", "S3Settings", "SettingInvalid", "Settings", "load"]

T = TypeVar("T", bound="Settings")


class SettingInvalid(Exception):
    """A variable is missing or wrong; the message names it and says what it takes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings classes; fields without a default are required."""

    prefix: ClassVar[str] = "ENTREPOT_"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatabaseSettings(Settings):
    """How to reach PostgreSQL."""

    prefix: ClassVar[str] = "ENTREPOT_DATABASE_"

    dsn: str
    """`postgresql://user@host:port/database`, without the password."""

    password: str = dataclasses.field(default="", repr=False)
    """The role's password."""

    pool_size: int = 16
    """Connections a process keeps at most."""

    connect_timeout: timedelta = timedelta(seconds=5)
    """How long to wait for a connection."""

    command_timeout: timedelta = timedelta(seconds=60)
    """How long one statement may take."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class S3Settings(Settings):
    """How to reach the S3 bucket that holds the bytes."""

    prefix: ClassVar[str] = "ENTREPOT_S3_"

    endpoint: str
    """`http://host:port` or `https://host[:port]`."""

    public_endpoint: str = ""
    """`http(s)://host[:port]` of the same bucket as clients reach it, for redirects; empty: the endpoint."""

    bucket: str = "entrepot"
    """The bucket; it must exist or be allowed to be made."""

    region: str = "us-east-1"
    """The region that requests are signed for."""

    access_key_id: str = ""
    """The access key; empty: the client's own chain of credentials."""

    secret_access_key: str = dataclasses.field(default="", repr=False)
    """The secret that belongs to the access key."""

    addressing: str = "path"
    """`path` (endpoint/bucket) or `virtual` (bucket.endpoint)."""

    ca_file: str = ""
    """PEM bundle that the endpoint's certificate is checked against; empty: the system's."""

    max_connections: int = 64
    """Connections a process keeps to S3 at most."""

    def __post_init__(self) -> None:
        if self.addressing not in {"path", "virtual"}:
            raise SettingInvalid(f"{self.prefix}ADDRESSING must be path or virtual, not {self.addressing!r}")


def load(cls: type[T], environ: Mapping[str, str] | None = None) -> T:
    """Read a settings class from the environment.

    Raises:
        SettingInvalid: a required variable is missing, or a value is not of its field's form.
    """
    environ = os.environ if environ is None else environ
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        variable = cls.prefix + field.name.upper()
        text = environ.get(variable)
        if text is None or text == "":
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise SettingInvalid(f"{variable} is not set; it is required")
            continue
        values[field.name] = _convert(variable, text, hints[field.name])
    return cls(**values)


def _convert(variable: str, text: str, kind: Any) -> Any:
    if isinstance(kind, types.UnionType):
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is int:
            number = int(text)
            if number < 0:
                raise ValueError(text)
            return number
        if kind is float:
            return float(text)
        if kind is timedelta:
            return parse_duration(text)
        if kind is Path:
            return Path(text)
        if typing.get_origin(kind) is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        return text
    except (KeyError, ValueError) as error:
        form = {
            bool: "true or false",
            int: "a whole number, 0 or more",
            float: "a number",
            timedelta: "a duration such as 30s",
        }
        raise SettingInvalid(f"{variable} must be {form.get(kind, 'valid')}, not {text!r}") from error
