"""The queue: each key once, one worker a key, later means later, and failures grow a pause."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrepot_operator.queue import Backlog, WorkQueue


def drain(backlog: Backlog[str]) -> list[str]:
    taken = []
    while (key := backlog.take()) is not None:
        taken.append(key)
        backlog.done(key)
    return taken


def test_a_key_that_is_added_twice_is_worked_on_once_in_order() -> None:
    backlog: Backlog[str] = Backlog()
    for key in ("a", "b", "a"):
        backlog.add(key)
    assert drain(backlog) == ["a", "b"]


def test_a_key_that_is_added_while_it_is_worked_on_comes_again_afterwards() -> None:
    backlog: Backlog[str] = Backlog()
    backlog.add("a")
    assert backlog.take() == "a"
    backlog.add("a")
    assert backlog.take() is None
    backlog.done("a")
    assert backlog.take() == "a"


def test_of_several_times_the_earliest_counts_and_now_cancels_them() -> None:
    backlog: Backlog[str] = Backlog()
    backlog.add_at("a", 10)
    backlog.add_at("a", 5)
    backlog.add_at("a", 7)
    assert backlog.next_time() == 5
    backlog.promote(4.9)
    assert backlog.take() is None
    backlog.promote(5)
    assert drain(backlog) == ["a"]
    assert backlog.next_time() is None
    backlog.add_at("a", 20)
    backlog.add("a")
    assert drain(backlog) == ["a"]
    assert backlog.next_time() is None


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["add", "at", "take", "done", "tick"]), st.integers(0, 9))
    )
)
def test_nothing_is_lost_and_nobody_works_on_a_key_twice_at_once(steps: list[tuple[str, str, int]]) -> None:
    backlog: Backlog[str] = Backlog()
    active: set[str] = set()
    owed: set[str] = set()
    now = 0.0
    for key, step, number in steps:
        match step:
            case "add":
                backlog.add(key)
                owed.add(key)
            case "at":
                backlog.add_at(key, now + number)
                owed.add(key)
            case "tick":
                now += number
                backlog.promote(now)
            case "take" if (taken := backlog.take()) is not None:
                assert taken not in active
                active.add(taken)
                owed.discard(taken)
            case "done" if key in active:
                active.discard(key)
                backlog.done(key)
    for key in active:
        backlog.done(key)
    backlog.promote(now + 100)
    assert set(drain(backlog)) == owed
    assert backlog.delayed == 0


def test_replaced_times_do_not_pile_up() -> None:
    backlog: Backlog[str] = Backlog()
    for when in range(10_000, 0, -1):
        backlog.add_at("a", when)
    assert len(backlog._heap) <= 70
    assert backlog.next_time() == 1


def make(**more: float) -> WorkQueue[str]:
    return WorkQueue(initial=timedelta(seconds=1), maximum=timedelta(seconds=60), clock=lambda: 0.0)


def test_the_pause_doubles_up_to_its_maximum_and_is_forgotten_after_a_success() -> None:
    queue = make()
    pauses = [queue.backoff("a").total_seconds() for _ in range(50)]
    for number, pause in enumerate(pauses):
        longest = min(60.0, 2.0**number)
        assert longest / 2 <= pause <= longest
    queue.forget("a")
    assert queue.backoff("a") <= timedelta(seconds=1)


async def test_workers_run_at_once_up_to_their_number_and_never_on_the_same_key() -> None:
    queue: WorkQueue[int] = WorkQueue(initial=timedelta(seconds=1), maximum=timedelta(seconds=60))
    busy: dict[int, int] = defaultdict(int)
    most, finished, done = 0, 0, asyncio.Event()

    async def work(key: int) -> None:
        nonlocal most, finished
        busy[key] += 1
        assert busy[key] == 1
        most = max(most, sum(busy.values()))
        queue.add(key) if finished < 20 else None
        await asyncio.sleep(0)
        busy[key] -= 1
        finished += 1
        if finished >= 60:
            done.set()

    for key in range(50):
        queue.add(key)
    running = asyncio.create_task(queue.run(work, workers=4))
    async with asyncio.timeout(10):
        await done.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert most == 4


async def test_a_delayed_key_wakes_the_queue_in_time() -> None:
    queue: WorkQueue[str] = WorkQueue(initial=timedelta(seconds=1), maximum=timedelta(seconds=60))
    order: list[str] = []
    done = asyncio.Event()

    async def work(key: str) -> None:
        order.append(key)
        if len(order) == 2:
            done.set()

    running = asyncio.create_task(queue.run(work, workers=2))
    await asyncio.sleep(0)
    queue.add_after("late", timedelta(milliseconds=50))
    queue.add_after("early", timedelta(milliseconds=10))
    async with asyncio.timeout(2):
        await done.wait()
    running.cancel()
    assert order == ["early", "late"]


async def test_work_that_raises_ends_the_queue() -> None:
    queue: WorkQueue[str] = WorkQueue(initial=timedelta(seconds=1), maximum=timedelta(seconds=60))

    async def work(key: str) -> None:
        raise ValueError(key)

    queue.add("a")
    with pytest.raises(ExceptionGroup):
        async with asyncio.timeout(2):
            await queue.run(work, workers=1)
