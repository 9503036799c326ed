"""Request bodies that are read whole, because they have to be understood: never more of them than a limit, nor for longer than a time.

Nearly all are small. One that is not holds room in a budget, so that many at once wait for each other and the process keeps its size.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from entrepot.blobs.budget import ByteBudget
from entrepot.errors import RegistryError
from entrepot.web.calls import Call
from entrepot_registry.bodies import Body

__all__ = ["SMALL", "read_document"]

SMALL = 64 * 1024
"""Bytes up to which a document needs no room in the budget, nor a thread to be read in."""


@asynccontextmanager
async def read_document(call: Call, *, limit: int, budget: ByteBudget, timeout: timedelta) -> AsyncIterator[bytes]:
    """The body of a request, for as long as the block lasts, which is how long a large one holds its room.

    Raises RegistryError: 413 when there is more than `limit` bytes of it, whatever its head says; 415 for an encoded one; 408 when it takes
    longer than `timeout` to arrive; 400 when it breaks off; 503 when there is no room for that long.
    """
    seconds = timeout.total_seconds()
    document, held = bytearray(), 0
    try:
        try:
            async with asyncio.timeout(seconds) as clock:
                async for chunk in Body(call, limit=limit, patience=seconds):
                    if not held and len(document) + len(chunk) > SMALL:
                        await _take_room(budget, limit, clock=clock, seconds=seconds)
                        held = limit
                    document += chunk
        except TimeoutError as error:
            raise RegistryError(
                408,
                "UNSUPPORTED",
                f"the document took longer than {seconds:g} s to arrive",
                headers={"Connection": "close"},
            ) from error
        yield bytes(document)
    finally:
        if held:
            budget.give(held)


async def _take_room(budget: ByteBudget, size: int, *, clock: asyncio.Timeout, seconds: float) -> None:
    """Wait for room with the document's clock stopped: this is not the client's fault."""
    loop = asyncio.get_running_loop()
    left = (clock.when() or loop.time()) - loop.time()
    clock.reschedule(None)
    try:
        async with asyncio.timeout(seconds):
            await budget.take(size)
    except TimeoutError as error:
        raise RegistryError(
            503, "UNAVAILABLE", "too many large documents at once; try again", headers={"Retry-After": "2"}
        ) from error
    clock.reschedule(loop.time() + left)
