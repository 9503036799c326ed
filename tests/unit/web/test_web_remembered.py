"""Answers that are kept for a while: asked once, shared by who waits, and failures never kept."""

from __future__ import annotations

import asyncio

import pytest

from entrepot.web.remembered import Remembered


class Oracle:
    """Answers when told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = asyncio.Event()
        self.fails = False

    async def __call__(self) -> str:
        self.asked += 1
        await self.go.wait()
        if self.fails:
            raise OSError("away")
        return f"answer {self.asked}"


async def test_who_asks_meanwhile_waits_for_the_same_answer_and_later_it_is_kept() -> None:
    oracle, kept = Oracle(), Remembered[str, str](size=2, lifetime=lambda _answer: 60)
    waiting = [asyncio.create_task(kept.get("a", oracle)) for _ in range(5)]
    await asyncio.sleep(0)
    oracle.go.set()
    assert set(await asyncio.gather(*waiting)) == {"answer 1"}
    assert kept.known("a") == await kept.get("a", oracle) == "answer 1"
    assert oracle.asked == 1
    assert await kept.get("b", oracle) == "answer 2"


async def test_who_goes_away_does_not_take_the_answer_from_the_others() -> None:
    oracle, kept = Oracle(), Remembered[str, str](size=2, lifetime=lambda _answer: 60)
    first, second = (asyncio.create_task(kept.get("a", oracle)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    oracle.go.set()
    assert await second == "answer 1"
    assert oracle.asked == 1


async def test_a_failure_goes_to_all_who_wait_and_the_next_one_asks_anew() -> None:
    oracle, kept = Oracle(), Remembered[str, str](size=2, lifetime=lambda _answer: 60)
    oracle.fails = True
    oracle.go.set()
    results = await asyncio.gather(*(kept.get("a", oracle) for _ in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["away"] * 3
    assert kept.known("a") is None
    oracle.fails = False
    assert await kept.get("a", oracle) == "answer 2"


@pytest.mark.parametrize("seconds", [0.0, -5.0])
async def test_an_answer_without_a_lifetime_is_given_and_not_kept(seconds: float) -> None:
    oracle, kept = Oracle(), Remembered[str, str](size=2, lifetime=lambda _answer: seconds)
    oracle.go.set()
    assert [await kept.get("a", oracle) for _ in range(2)] == ["answer 1", "answer 2"]


async def test_what_is_kept_is_bounded() -> None:
    oracle, kept = Oracle(), Remembered[int, str](size=10, lifetime=lambda _answer: 60)
    oracle.go.set()
    for number in range(100):
        await kept.get(number, oracle)
    assert sum(kept.known(number) is not None for number in range(100)) == 10
