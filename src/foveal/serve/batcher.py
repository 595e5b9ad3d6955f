"""Groups what many requests ask for into batches of fixed sizes, and gives each its own answer."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from foveal.errors import FovealError
from foveal.serve.problems import stopping

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Run = Callable[[Hashable, list[Item]], Awaitable[Sequence[Answer]]]


@dataclass(eq=False)
class _Entry(Generic[Item, Answer]):
    item: Item
    arrived: float
    answer: "asyncio.Future[Answer]" = field(repr=False)
    waits: bool = True


class Batcher(Generic[Item, Answer]):
    """Runs items of one key together, one batch at a time, in the order in which they came.

    While a batch runs, others gather. When it has ended, the key whose first item is the oldest is next: at once if it
    fills the largest bucket or expects no company, else when that item has waited `max_wait_s`. As many are taken as
    the largest bucket that they fill, so that every batch has one of few sizes and nothing is computed in vain; the
    rest goes next.

    An item whose request is gone or late is taken out of the queue. A batch that fails is tried again item by item, so
    that none fails for its neighbour.

    Args:
        run: computes the answers of items of one key, in their order.
        buckets: sizes of batches, ascending, the first 1.
        largest: the most items of a key in a batch, where that is less than the largest bucket.
        max_wait_s: how long the first item of a batch waits for company.
        expects: whether company is on its way; where none is, nothing waits for it.
        on_batch: told the size of each batch, for measurements.
    """

    def __init__(
        self,
        run: Run[Item, Answer],
        *,
        buckets: Sequence[int] = (1, 2, 4, 8),
        largest: Callable[[Hashable], int] | None = None,
        max_wait_s: float = 0.002,
        expects: Callable[[], bool] = lambda: True,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        if not buckets or buckets[0] != 1 or list(buckets) != sorted(set(buckets)):
            raise FovealError(f"buckets={tuple(buckets)}; give ascending sizes that begin with 1")
        self._run = run
        self._buckets = tuple(buckets)
        self._largest = largest or (lambda key: self._buckets[-1])
        self._max_wait_s = max_wait_s
        self._expects = expects
        self._on_batch = on_batch
        self._waiting: dict[Hashable, deque[_Entry[Item, Answer]]] = {}
        self._woken = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Items in the queue, without those of the batch that runs."""
        return sum(map(len, self._waiting.values()))

    def start(self) -> None:
        """Begin to run batches, in the event loop that is running."""
        self._task = asyncio.get_running_loop().create_task(self._serve(), name="batcher")

    async def stop(self) -> None:
        """End after the batch that runs; what still waits is refused."""
        self._stopping = True
        self._woken.set()
        if self._task is not None:
            await self._task
        for entry in [entry for entries in self._waiting.values() for entry in entries]:
            if not entry.answer.done():
                entry.answer.set_exception(stopping())
        self._waiting.clear()

    async def submit(self, key: Hashable, item: Item) -> Answer:
        """Return the answer for an item. Whoever is cancelled while waiting here, takes the item out of the queue.

        Args:
            key: only items of equal keys share a batch.
            item: what to run.

        Raises:
            Problem: 503, the server is stopping.
        """
        if self._stopping:
            raise stopping()
        loop = asyncio.get_running_loop()
        entry: _Entry[Item, Answer] = _Entry(item, loop.time(), loop.create_future())
        self._waiting.setdefault(key, deque()).append(entry)
        self._woken.set()
        try:
            return await entry.answer
        finally:
            if entry.waits and key in self._waiting:
                self._waiting[key].remove(entry)
                if not self._waiting[key]:
                    del self._waiting[key]

    async def _serve(self) -> None:
        while await self._is_due():
            key, entries = self._take()
            self._on_batch(len(entries))
            await self._answer(key, entries)

    async def _is_due(self) -> bool:
        """Wait until a batch may begin; False when the batcher has been stopped."""
        loop = asyncio.get_running_loop()
        while not self._stopping:
            self._woken.clear()
            if self._waiting:
                key, entries = self._oldest()
                left = entries[0].arrived + self._max_wait_s - loop.time()
                is_full = len(entries) >= min(self._buckets[-1], self._largest(key))
                if is_full or left <= 0 or not self._expects():
                    return True
            try:
                async with asyncio.timeout(left if self._waiting else None):
                    await self._woken.wait()
            except TimeoutError:
                continue
        return False

    def _oldest(self) -> tuple[Hashable, deque[_Entry[Item, Answer]]]:
        """Return the key whose first item has waited longest, with all its items; none of them is empty."""
        return min(self._waiting.items(), key=lambda pair: pair[1][0].arrived)

    def _take(self) -> tuple[Hashable, list[_Entry[Item, Answer]]]:
        """Take the items of the next batch out of the queue; right after `_is_due`, so that there are some."""
        key, entries = self._oldest()
        most = max(1, min(len(entries), self._largest(key)))
        size = max(bucket for bucket in self._buckets if bucket <= most)
        taken = [entries.popleft() for _ in range(size)]
        for entry in taken:
            entry.waits = False
        if not entries:
            del self._waiting[key]
        return key, taken

    async def _answer(self, key: Hashable, entries: list[_Entry[Item, Answer]]) -> None:
        try:
            answers = await self._run(key, [entry.item for entry in entries])
            if len(answers) != len(entries):
                raise RuntimeError(f"{len(answers)} answers for a batch of {len(entries)}")
        except Exception as error:  # of the engine or of one item: told to whom it belongs
            if len(entries) > 1:
                logger.warning("a batch of %d failed (%s); trying one by one", len(entries), type(error).__name__)
                for entry in entries:
                    if not entry.answer.done():
                        await self._answer(key, [entry])
            elif not entries[0].answer.done():
                entries[0].answer.set_exception(error)
            return
        for entry, answer in zip(entries, answers, strict=True):
            if not entry.answer.done():  # else its request is gone
                entry.answer.set_result(answer)
