"""How many bytes are held, whoever waits for whom."""

import asyncio

from pipeline.crawl.budget import ByteBudget


def run(work) -> None:
    async def main() -> None:
        await asyncio.wait_for(work(ByteBudget(100, asyncio.get_running_loop())), 10)

    asyncio.run(main())


def test_a_body_waits_until_the_consumer_has_taken_another():
    async def work(budget: ByteBudget) -> None:
        assert budget.fits(90)
        budget.done("a", 90, 90)
        assert not budget.is_full
        waiting = asyncio.ensure_future(budget.take(20, "b"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await asyncio.to_thread(budget.free, 90)
        await waiting
        assert not budget.fits(90) and budget.fits(80) and budget.is_full

    run(work)


def test_of_bodies_that_block_each_other_one_may_go_on():
    async def work(budget: ByteBudget) -> None:
        assert budget.fits(50) and budget.fits(50)
        first = asyncio.ensure_future(budget.take(30, "a"))
        second = asyncio.ensure_future(budget.take(30, "b"))
        await asyncio.sleep(0.01)
        assert [first.done(), second.done()] == [True, False]
        await budget.take(30, "a")  # to its end
        budget.done("a", 110, 110)
        await asyncio.sleep(0.01)
        assert not second.done()  # now the consumer makes room
        budget.free(110)
        await second

    run(work)


def test_a_failed_body_gives_its_bytes_back():
    async def work(budget: ByteBudget) -> None:
        assert budget.fits(100) and budget.is_full
        budget.done("a", 100, 5)
        assert budget.fits(95) and not budget.fits(1)

    run(work)
