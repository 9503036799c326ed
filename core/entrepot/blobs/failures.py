"""What S3's errors mean to us."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError

from entrepot.errors import Failed, StorageUnavailable

__all__ = ["BuffersFull", "ObjectMissing", "PartsReplaced", "TooManyParts", "translated"]

_MISSING = frozenset({"NoSuchKey", "NotFound", "404", "NoSuchUpload"})


class ObjectMissing(StorageUnavailable):
    """There is no object of this key, although a row says so."""

    default_reason = "ObjectMissing"


class PartsReplaced(StorageUnavailable):
    """The parts of a multipart upload are not those that were named: somebody sent one of them again."""

    default_reason = "PartsReplaced"


class TooManyParts(StorageUnavailable):
    """An object needs more parts than S3 takes: trying again would not help."""

    default_reason = "TooManyParts"


class BuffersFull(Failed):
    """So much is on its way that there was no room for more for long."""

    default_reason = "BuffersFull"


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise `StorageUnavailable` where S3 does not do as it is asked, and `ObjectMissing` where it does not have it."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "")) or "no code given"
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code in _MISSING:
            raise ObjectMissing(f"S3 does not have {what} ({code})") from error
        if code == "InvalidPart":
            raise PartsReplaced(f"S3 has other parts of {what}") from error
        raise StorageUnavailable(f"S3 refused {what}: {code} ({status})") from error
    except (BotoCoreError, aiohttp.ClientError, OSError, TimeoutError) as error:
        raise StorageUnavailable(f"S3 does not answer for {what}: {type(error).__name__}") from error
