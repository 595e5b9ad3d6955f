"""Batches of fixed sizes, each answer to its own request, and none for requests that are gone."""

import asyncio
from collections.abc import Hashable

import pytest

from foveal.errors import FovealError
from foveal.serve.batcher import Batcher
from foveal.serve.problems import Problem

pytestmark = pytest.mark.anyio


class Doubler:
    """Doubles numbers, and remembers the batches in which they came."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.batches: list[tuple[Hashable, list[int]]] = []
        self.delay_s = delay_s

    async def __call__(self, key: Hashable, items: list[int]) -> list[int]:
        self.batches.append((key, items))
        await asyncio.sleep(self.delay_s)
        if -1 in items:
            raise ValueError("no double")
        return [2 * item for item in items]

    @property
    def sizes(self) -> list[int]:
        return [len(items) for _, items in self.batches]


async def test_ten_thousand_mixed_requests_each_get_their_own_answer() -> None:
    run = Doubler()
    batcher: Batcher[int, int] = Batcher(run, max_wait_s=0.0)
    batcher.start()
    found = await asyncio.gather(*(batcher.submit(number % 7, number) for number in range(10_000)))
    await batcher.stop()
    assert found == [2 * number for number in range(10_000)]
    assert set(run.sizes) <= {1, 2, 4, 8}
    assert 8 in run.sizes
    assert all(item % 7 == key for key, items in run.batches for item in items)


@pytest.mark.parametrize(("waiting", "sizes"), [(1, [1]), (3, [2, 1]), (8, [8]), (13, [8, 4, 1])])
async def test_a_batch_is_the_largest_bucket_that_is_filled(waiting: int, sizes: list[int]) -> None:
    run = Doubler()
    batcher: Batcher[int, int] = Batcher(run, max_wait_s=0.01)
    batcher.start()
    await asyncio.gather(*(batcher.submit("a", 100 + number) for number in range(waiting)))
    await batcher.stop()
    assert run.sizes == sizes


async def test_a_key_may_have_a_smaller_largest_batch() -> None:
    run = Doubler()
    batcher: Batcher[int, int] = Batcher(run, largest=lambda key: 3 if key == "large" else 99, max_wait_s=0.01)
    batcher.start()
    await asyncio.gather(*(batcher.submit("large", 100 + number) for number in range(8)))
    await batcher.stop()
    assert run.sizes == [2, 2, 2, 2]


async def test_nothing_waits_for_company_that_is_not_expected() -> None:
    expected = [False, True]
    run = Doubler()
    batcher: Batcher[int, int] = Batcher(run, max_wait_s=60, expects=lambda: expected[0])
    batcher.start()
    async with asyncio.timeout(10):
        assert await batcher.submit("a", 1) == 2
        expected.reverse()
        waits = asyncio.ensure_future(batcher.submit("a", 3))
        await asyncio.sleep(0.02)
        assert run.sizes == [1]
        await asyncio.gather(*(batcher.submit("a", number) for number in range(7)))
        assert await waits == 6
    await batcher.stop()
    assert run.sizes == [1, 8]


async def test_the_oldest_key_is_next() -> None:
    run = Doubler(delay_s=0.01)
    batcher: Batcher[int, int] = Batcher(run, max_wait_s=0.0)
    batcher.start()
    first = asyncio.ensure_future(batcher.submit("first", 0))
    await asyncio.sleep(0.002)
    rest = [asyncio.ensure_future(batcher.submit(key, 1)) for key in ("b", "a", "b")]
    await asyncio.gather(first, *rest)
    await batcher.stop()
    assert [key for key, _ in run.batches] == ["first", "b", "a"]


async def test_work_of_a_request_that_is_gone_is_not_done() -> None:
    run = Doubler(delay_s=0.02)
    batcher: Batcher[int, int] = Batcher(run, max_wait_s=0.0)
    batcher.start()
    first = asyncio.ensure_future(batcher.submit("a", 1))
    await asyncio.sleep(0.005)
    gone, stays = (asyncio.ensure_future(batcher.submit("a", number)) for number in (2, 3))
    await asyncio.sleep(0)
    assert batcher.num_waiting == 2
    gone.cancel()
    assert (await first, await stays) == (2, 6)
    assert gone.cancelled()
    assert [items for _, items in run.batches] == [[1], [3]]
    assert batcher.num_waiting == 0
    await batcher.stop()


async def test_one_bad_item_fails_alone() -> None:
    batcher: Batcher[int, int] = Batcher(Doubler(), max_wait_s=0.01)
    batcher.start()
    found = await asyncio.gather(*(batcher.submit("a", number) for number in (12, -1, 14, 15)), return_exceptions=True)
    await batcher.stop()
    assert found[0] == 24
    assert found[2:] == [28, 30]
    assert isinstance(found[1], ValueError)


async def test_stopping_answers_what_runs_and_refuses_what_waits() -> None:
    batcher: Batcher[int, int] = Batcher(Doubler(delay_s=0.02), max_wait_s=0.0)
    batcher.start()
    runs = asyncio.ensure_future(batcher.submit("a", 1))
    await asyncio.sleep(0.005)
    waits = asyncio.ensure_future(batcher.submit("a", 2))
    await asyncio.sleep(0)
    await batcher.stop()
    assert await runs == 2
    with pytest.raises(Problem, match="stopping") as error:
        await waits
    assert (error.value.status, error.value.retry_after_s) == (503, 1)
    with pytest.raises(Problem, match="stopping"):
        await batcher.submit("a", 3)


def test_buckets_begin_with_one() -> None:
    with pytest.raises(FovealError, match=r"buckets=\(2, 4\); give ascending sizes that begin with 1"):
        Batcher(Doubler(), buckets=(2, 4))
