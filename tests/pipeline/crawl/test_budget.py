"""How many bytes are held, whoever waits for whom."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.crawl.budget import ByteBudget, Room


def run(work) -> None:
    asyncio.run(asyncio.wait_for(work(), 10))


async def turns() -> None:
    """Let all others go on as far as they can."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_whole_bodies_fill_the_budget_until_the_consumer_takes_them():
    async def work() -> None:
        budget = ByteBudget(100, asyncio.get_running_loop())
        budget.keep(99)
        assert not budget.is_full
        budget.keep(50)
        assert budget.is_full
        waiting = asyncio.ensure_future(budget.wait())
        await turns()
        assert not waiting.done()
        await asyncio.to_thread(budget.free, 99)
        await waiting
        assert not budget.is_full

    run(work)


@pytest.mark.parametrize("ticks", range(6))
def test_a_cancellation_is_not_lost_however_close_it_comes_to_the_news(ticks):
    async def work() -> None:
        budget = ByteBudget(1, asyncio.get_running_loop())
        budget.keep(1)

        async def forever() -> None:
            while True:
                await budget.wait()

        waiting = asyncio.ensure_future(forever())
        await turns()
        budget.free(1)
        for _ in range(ticks):
            await asyncio.sleep(0)
        waiting.cancel()
        await turns()
        assert waiting.cancelled()

    run(work)


def test_small_bodies_never_wait():
    async def work() -> None:
        room = Room(100, small=10)
        with room.body("a") as stalled, room.body("b") as other:
            await stalled.grow(11, 500)
            await other.grow(10, 500)

    run(work)


def test_large_bodies_have_room_to_their_end_or_wait_without_any():
    async def work() -> None:
        room = Room(100, small=10)
        with room.body("c") as last:
            with room.body("a") as same, room.body("b") as other:
                with room.body("a") as first:
                    await first.grow(11, 25)
                    waiting = asyncio.ensure_future(same.grow(11, 25))
                    await turns()
                    assert not waiting.done()  # its host has its quarter
                    await other.grow(11, 60)  # a body alone may be larger than that
                    late = asyncio.ensure_future(last.grow(11, 20))
                    await turns()
                    assert not late.done()  # all together have what there is
                    await first.grow(25, 25)
                await waiting
                await turns()
                assert not late.done()
            await late
        with room.body("d") as alone:
            await alone.grow(11, 1000)  # whatever the limit is, one goes on

    run(work)


def test_who_gives_up_waiting_takes_nothing():
    async def work() -> None:
        room = Room(100, small=10)
        with room.body("a") as first:
            await first.grow(11, 100)
            for ticks in range(3):
                with room.body("b") as second:
                    waiting = asyncio.ensure_future(second.grow(11, 100))
                    await turns()
                    if ticks:
                        first.__exit__()
                    for _ in range(ticks - 1):
                        await asyncio.sleep(0)
                    waiting.cancel()
                    await turns()
                    assert waiting.done()
        with room.body("c") as third:
            await third.grow(11, 100)

    run(work)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 150)), max_size=25))
def test_all_bodies_come_to_their_end_within_the_limit(bodies):
    held = []
    most = []

    async def one(room: Room, host: str, size: int) -> None:
        with room.body(host) as body:
            await body.grow(size, size)
            if size > 5:
                held.append(size)
                most.append((len(held), sum(held)))
            await asyncio.sleep(0)
            if size > 5:
                held.remove(size)

    async def work() -> None:
        room = Room(100, small=5)
        await asyncio.gather(*(one(room, host, size) for host, size in bodies))

    run(work)
    assert not held and all(count == 1 or total <= 100 for count, total in most)
