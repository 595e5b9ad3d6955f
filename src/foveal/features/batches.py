"""Batches of prepared images from a set: decoded ahead in threads, bad ones skipped and counted."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from foveal.errors import BadImageError, ImageSetError
from foveal.images.imageset import ImageSet
from foveal.images.ledger import BadImageLedger, listed

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def prepared_batches(
    images: ImageSet,
    prepare: Callable[[np.ndarray], np.ndarray],
    *,
    batch_size: int,
    channels: int = 3,
    num_threads: int = 2,
    bad: Counter[str] | None = None,
    ledger: BadImageLedger | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[Tensor, list[np.ndarray]]]:
    """Yield the images of a set in order, decoded and prepared, while the caller computes on earlier ones.

    Args:
        images: the set.
        prepare: turns (H, W, channels) as decoded into what is wanted; runs in threads.
        batch_size: images in each batch; the last may be smaller.
        channels: what to decode to; see `foveal.images.decode.decode`.
        num_threads: decoding threads. At most two batches wait.
        bad: filled with the number of skipped images by reason.
        ledger: records the bad images and stops at too many; None only counts and warns.
        progress: called with (images done, images in all) after each batch.

    Yields:
        Indices (b,) int64 into the set, and b arrays.

    Raises:
        ImageSetError: not one image can be read, or more are bad than the ledger allows.
    """
    if batch_size < 1 or num_threads < 1:
        raise ImageSetError(f"batch_size={batch_size}, num_threads={num_threads}; both must be at least 1")
    bad = Counter() if bad is None else bad
    indices: list[int] = []
    arrays: list[np.ndarray] = []
    num_good = 0

    def load(index: int) -> np.ndarray | BadImageError:
        try:
            return prepare(images.decode(index, channels=channels))
        except BadImageError as error:
            return error

    for index, result in enumerate(map_ahead(load, range(len(images)), num_threads, ahead=2 * batch_size)):
        if isinstance(result, BadImageError):
            bad[result.reason] += 1
            if ledger is not None:
                ledger.record(images.uri(index), reason=result.reason, message=str(result))
        else:
            indices.append(index)
            arrays.append(result)
        if len(arrays) < batch_size and index + 1 < len(images):
            continue
        if arrays:
            yield torch.tensor(indices), arrays
        num_good += len(arrays)
        indices, arrays = [], []
        if progress:
            progress(index + 1, len(images))
    if not num_good:
        raise ImageSetError(f"none of the {len(images)} images can be read ({listed(bad)}); check the source")
    if bad:
        logger.warning("%d of %d images skipped: %s", bad.total(), len(images), listed(bad))


def map_ahead(
    function: Callable[[_Item], _Result], items: Iterable[_Item], num_threads: int, *, ahead: int
) -> Iterator[_Result]:
    """Yield function(item) in the order of the items, computed in threads with at most `ahead` results waiting.

    All that waits here is a queue made in C. An executor takes locks in Python, and Ctrl-C in the moment between a lock
    and its `with` leaves it locked: its threads would never end, and nor would the command.
    """
    tasks: SimpleQueue[tuple[_Item, SimpleQueue[Any]] | None] = SimpleQueue()
    ended: SimpleQueue[None] = SimpleQueue()
    waiting: deque[SimpleQueue[Any]] = deque()
    stopping, num_started = False, 0

    def work() -> None:
        while (task := tasks.get()) is not None and not stopping:
            item, answer = task
            try:
                answer.put((function(item), None))
            except BaseException as error:
                answer.put((None, error))
        ended.put(None)

    def result() -> _Result:
        found, error = waiting.popleft().get()
        if error is not None:
            raise error
        return found

    try:
        for _ in range(num_threads):
            Thread(target=work, daemon=True).start()
            num_started += 1
        for item in items:
            waiting.append(SimpleQueue())
            tasks.put((item, waiting[-1]))
            if len(waiting) >= ahead:
                yield result()
        while waiting:
            yield result()
    finally:
        stopping = True
        for _ in range(num_started):
            tasks.put(None)
        for _ in range(num_started):
            ended.get()
