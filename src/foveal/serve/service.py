"""The model behind the endpoints: opens images in threads, runs them in batches beside the loop, exchanges itself.

Shapes: B images, C channels, D width, H W pixels; grid_h x grid_w patches; K classes or maps.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, TypeVar

import numpy as np

from foveal.errors import FovealError
from foveal.images.decode import decode
from foveal.images.preprocess import Mode, Preprocess, Size, short_side_shape
from foveal.serve.batcher import Batcher
from foveal.serve.limits import Admission, AnswerSize, Room, decode_limits
from foveal.serve.loaded import Loaded, Source, open_source
from foveal.serve.metrics import Metrics
from foveal.serve.one_run import shares
from foveal.serve.problems import Problem, problem_of, stopping
from foveal.serve.settings import ServeSettings
from foveal.serve.work import Encoded, Work, compute, find_head
from foveal.tasks.classify import ClassPredictor
from foveal.tasks.predict import Predictor

logger = logging.getLogger(__name__)

Picture = bytes | np.ndarray  # an encoded file, or pixels (H, W, C)
UNAWAITED = "opens a model"  # name of a thread
_Answer = TypeVar("_Answer")


class Service:
    """A loaded model that answers many at once.

    Args:
        loaded: what is served.
        settings: limits and sizes of batches.
    """

    def __init__(self, loaded: Loaded, settings: ServeSettings) -> None:
        self.loaded = loaded
        self.settings = settings
        self.admission = Admission(max_images=settings.max_queue, max_bytes=settings.max_bodies_bytes)
        self.metrics = Metrics(self.admission, buckets=settings.buckets)
        self.batcher: Batcher[Any, Any] = Batcher(
            self._run,
            buckets=settings.buckets,
            largest=self._largest,
            max_wait_s=settings.max_wait_ms / 1000,
            expects=lambda: self.admission.images > self.batcher.num_waiting,
            on_batch=self.metrics.batches.observe,
        )
        self.metrics.waiting.set_function(lambda: self.batcher.num_waiting)
        self.is_ready = False
        self._pictures = 0
        self._open_pictures = asyncio.Semaphore(settings.decode_threads + 1)
        self.prepared = Room(max_bytes=settings.max_bodies_bytes, at_once=2 * settings.decode_threads)
        self._swapping = asyncio.Lock()
        self._decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._engine = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._searches = ThreadPoolExecutor(1, thread_name_prefix="search")

    async def start(self) -> None:
        """Begin to answer, in the event loop that is running."""
        self.batcher.start()
        self.is_ready = True

    async def stop(self) -> None:
        """Answer the batch that runs, refuse the rest, and end the threads."""
        self.is_ready = False
        await self.batcher.stop()
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._engine.shutdown(wait=False, cancel_futures=True)
        self._searches.shutdown(wait=False, cancel_futures=True)

    async def features(
        self,
        images: Sequence[Picture],
        *,
        patches: bool = False,
        size: Size | None = None,
        fit: Mode = "crop",
        field: str = "images",
    ) -> list[Encoded]:
        """Return the tokens of pictures, each as if it had been asked for alone.

        Args:
            images: files or pixels.
            patches: keep the patches; else those of the answers have their grid and no numbers.
            size: see `foveal.features.extract.Model.extract`.
            fit: see there.
            field: of the request, for problems.

        Raises:
            Problem: an image that cannot be read or is too large; an answer that would be too large; no room.
        """
        loaded = self.loaded
        answer = AnswerSize(self.settings.max_answer_bytes)
        backbone = loaded.model.card.backbone
        preprocess = _of_request(lambda: loaded.model.preprocessing(size=size, fit=fit), "size")

        async def one(number: int, picture: Picture) -> Encoded:
            async with self._prepared(picture, preprocess, f"{field}.{number}") as array:
                if patches:
                    answer.add(4 * backbone.width * (array.shape[1] * array.shape[2] // backbone.patch_size**2))
                found: Encoded = await self.batcher.submit(Work(loaded, "tokens", "", array.shape), array)
            return found if patches else found._replace(patches=np.empty((*found.patches.shape[:2], 0), np.float32))

        with self.admission.admit(len(images)):
            return await together(one(number, picture) for number, picture in enumerate(images))

    async def vectors(
        self, loaded: Loaded, images: Sequence[Picture], preprocess: Preprocess, *, token: str, field: str = "images"
    ) -> np.ndarray:
        """Return one vector an image, (B, D) float32, of pictures that go through a transform of their own.

        Args:
            loaded: the model.
            images: files or pixels.
            preprocess: the transform.
            token: "cls" or "mean", that of the patches.
            field: of the request, for problems.

        Raises:
            Problem: an image that cannot be read or is too large; no room.
        """

        async def one(number: int, picture: Picture) -> np.ndarray:
            async with self._prepared(picture, preprocess, f"{field}.{number}") as array:
                found: Encoded = await self.batcher.submit(Work(loaded, "tokens", "", array.shape), array)
            return found.cls.copy() if token == "cls" else found.patches.mean(axis=(0, 1))

        with self.admission.admit(len(images)):
            return np.stack(await together(one(number, picture) for number, picture in enumerate(images)))

    async def tokens(self, loaded: Loaded, image: Picture, preprocess: Preprocess, *, field: str) -> Encoded:
        """Return the tokens of one picture that goes through a transform of its own."""
        with self.admission.admit(1):
            async with self._prepared(image, preprocess, field) as array:
                found: Encoded = await self.batcher.submit(Work(loaded, "tokens", "", array.shape), array)
        return Encoded(*(part.copy() for part in found))  # of a batch, which is not kept for one

    async def infer(
        self,
        loaded: Loaded,
        images: np.ndarray | Sequence[bytes],
        *,
        tokens: bool,
        heads: Sequence[str],
        field: str = "images",
    ) -> list[list[Any]]:
        """Return what the graph of a model with its heads says of images, each as if it had been asked for alone.

        Args:
            loaded: the model.
            images: normalised (B, C, H, W) float32, H and W multiples of the patch size; or files.
            tokens: give the tokens.
            heads: names of heads.
            field: of the request, for problems.

        Returns:
            For each image, in this order: where wanted its tokens; of each head logits (K,), or maps (K, H, W).

        Raises:
            Problem: an image that cannot be read, has no allowed shape or is too large; no room.
        """
        if isinstance(images, np.ndarray):
            self._check_size(loaded, images.shape[1:], field)
        preprocess = loaded.model.preprocessing()

        shared = [name for name in heads if shares(loaded.model, loaded.heads[name])]
        shared = shared if tokens + len(shared) > 1 else []

        async def run(array: np.ndarray) -> list[Any]:
            works = [Work(loaded, "both", ",".join(shared), array.shape)] if shared else []
            works += [Work(loaded, "tokens", "", array.shape)] if tokens and not shared else []
            apart = [name for name in heads if name not in shared]
            works += [Work(loaded, "scores", name, array.shape) for name in apart]
            found = await together(self.batcher.submit(work, array) for work in works)
            encoded, scores = found.pop(0) if shared else (found.pop(0) if tokens else None, {})
            scores = scores | dict(zip(apart, found, strict=True))
            return [*([encoded] if tokens else []), *(scores[name] for name in heads)]

        async def one(number: int, image: Picture) -> list[Any]:
            if isinstance(image, np.ndarray):
                return await run(image)  # it is counted as part of the body
            async with self._prepared(image, preprocess, f"{field}.{number}") as array:
                return await run(array)

        with self.admission.admit(len(images)):
            return await together(one(number, image) for number, image in enumerate(images))

    async def head(
        self, loaded: Loaded, name: str, images: Sequence[Picture], *, size: int | None = None, field: str = "images"
    ) -> list[np.ndarray]:
        """Return the answers of a head for pictures, each as if it had been asked for alone.

        Args:
            loaded: the model whose head it is; who describes the answers looks at the same one.
            name: of the head.
            images: files or pixels.
            size: of dense heads: the short side at which the model sees them, pixels; see `Predictor.predict`.
            field: of the request, for problems.

        Returns:
            For each picture: probabilities (K,) float32, class ids (H, W) uint16, or depth (H, W) float32.

        Raises:
            Problem: 404, no head of that name; an image that cannot be read or is too large; an answer that would be
                too large; no room.
        """
        predictor = find_head(loaded, name)
        if isinstance(predictor, ClassPredictor) and size is not None:
            raise Problem(422, "invalid_value", "size is of masks and depth; leave it out for classes", field="size")
        preprocess = loaded.model.preprocessing()
        answer = AnswerSize(self.settings.max_answer_bytes)
        bytes_a_pixel = 4 if predictor.head.card.task == "depth" else 2

        async def one(number: int, picture: Picture) -> np.ndarray:
            where = f"{field}.{number}"
            found: np.ndarray
            if isinstance(predictor, ClassPredictor):
                async with self._prepared(picture, preprocess, where) as item:
                    found = await self.batcher.submit(Work(loaded, "classes", name, item.shape), item)
                return found
            async with self._open_pictures:  # whole pictures run one by one: more of them open would only fill memory
                pixels = await self._pixels(picture, predictor, size, where)
                answer.add(bytes_a_pixel * pixels.shape[0] * pixels.shape[1])
                self._pictures += 1
                found = await self.batcher.submit(Work(loaded, "answer", name, (self._pictures,)), (pixels, size))
                return found

        with self.admission.admit(len(images)):
            return await together(one(number, picture) for number, picture in enumerate(images))

    async def aside(self, function: Callable[[], _Answer]) -> _Answer:
        """Run something short beside the event loop, in the threads that open images."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function)

    async def searched(self, function: Callable[[], _Answer]) -> _Answer:
        """Run a search beside the event loop: one at a time, since each uses what the processor has."""
        return await asyncio.get_running_loop().run_in_executor(self._searches, function)

    async def swap(self, source: Source) -> Loaded:
        """Open and verify another model beside the one that is served, then serve it: from the next request on.

        Raises:
            Problem: 409, another one is being opened; 422, it is refused, and the old one is served as before; 503, the
                server is stopping.
        """
        if self.admission.is_draining:
            raise stopping()
        if self._swapping.locked():
            raise Problem(409, "swap_in_progress", "another model is being opened; wait for it")
        async with self._swapping:
            try:
                loaded = await unawaited(partial(open_source, source, buckets=self.settings.buckets))
            except FovealError as error:
                self.metrics.swaps.labels("refused").inc()
                raise Problem(422, "swap_refused", f"{error} (still serving {self.loaded.name})") from error
            self.loaded = loaded
            self.metrics.swaps.labels("done").inc()
            logger.info("serving %s (%s) now", loaded.name, loaded.model.identity[:12])
            return loaded

    def _prepared(
        self, picture: Picture, preprocess: Preprocess, field: str
    ) -> AbstractAsyncContextManager[np.ndarray]:
        """Return a picture as the network takes it, for as long as it is answered; waits while there are too many."""

        def prepare() -> np.ndarray:
            pixels = self._decoded(picture, preprocess.channels)
            height, width = preprocess.resized_shape(*pixels.shape[:2])
            if height * width > self.settings.max_pixels:
                raise Problem(
                    413,
                    "too_many_pixels",
                    f"{pixels.shape[1]} x {pixels.shape[0]} pixels would become {width} x {height}, allowed are "
                    f"{self.settings.max_pixels} in all; crop this strip first",
                )
            if preprocess.mode != "crop":
                self._check_patches(height, width, preprocess.patch_size)
            return preprocess(pixels)

        return self.prepared.hold(lambda: self._in_decoder(prepare, field))

    async def _pixels(self, picture: Picture, predictor: Predictor, size: int | None, field: str) -> np.ndarray:
        def prepare() -> np.ndarray:
            backbone = predictor.model.card.backbone
            pixels = self._decoded(picture, backbone.channels)
            seen = size or predictor.fitted_size
            height, width = pixels.shape[:2]
            if seen is not None:
                height, width = short_side_shape(height, width, size=seen)
            self._check_patches(height, width, backbone.patch_size)
            return pixels

        return await self._in_decoder(prepare, field)

    async def _in_decoder(self, prepare: Callable[[], np.ndarray], field: str) -> np.ndarray:
        try:
            return await self.aside(prepare)
        except FovealError as error:
            problem = problem_of(error, field=field)
            problem.field = problem.field or field
            raise problem from error

    def _decoded(self, picture: Picture, channels: int) -> np.ndarray:
        if isinstance(picture, np.ndarray):
            return picture
        return decode(picture, channels=channels, limits=decode_limits(self.settings))

    def _check_patches(self, height: int, width: int, patch_size: int, field: str | None = None) -> None:
        num_patches = -(-height // patch_size) * -(-width // patch_size)
        if num_patches > self.settings.max_patches:
            raise Problem(
                413,
                "too_many_patches",
                f"{width} x {height} pixels are {num_patches} patches, allowed are {self.settings.max_patches}; "
                "send a smaller image, or name a smaller size",
                field=field,
            )

    def _check_size(self, loaded: Loaded, shape: tuple[int, ...], field: str) -> None:
        backbone = loaded.model.card.backbone
        channels, height, width = shape
        if channels != backbone.channels or height % backbone.patch_size or width % backbone.patch_size:
            raise Problem(
                422,
                "invalid_shape",
                f"images of shape {shape}; give {backbone.channels} channels and sides that are multiples of "
                f"{backbone.patch_size}",
                field=field,
            )
        self._check_patches(height, width, backbone.patch_size, field)

    def _largest(self, key: Hashable) -> int:
        """Return how many images of a shape make a batch of no more patches than one image may have."""
        assert isinstance(key, Work)
        if key.kind == "answer":
            return 1
        patches = key.shape[1] * key.shape[2] // key.loaded.model.card.backbone.patch_size**2
        return self.settings.max_patches // max(patches, 1)

    async def _run(self, key: Hashable, items: list[Any]) -> Sequence[Any]:
        assert isinstance(key, Work)
        began = time.monotonic()
        found = await asyncio.get_running_loop().run_in_executor(self._engine, partial(compute, key, items))
        self.metrics.batch_seconds.observe(time.monotonic() - began)
        self.admission.answered(len(items), time.monotonic() - began)
        return found


async def unawaited(function: Callable[[], _Answer]) -> _Answer:
    """Run something long in a thread of its own, for which the end of the process does not wait."""
    found: Future[_Answer] = Future()
    found.set_running_or_notify_cancel()  # whoever gives up leaves it running

    def run() -> None:
        try:
            found.set_result(function())
        except BaseException as error:  # raised where it is awaited
            found.set_exception(error)

    threading.Thread(target=run, name=UNAWAITED, daemon=True).start()
    return await asyncio.wrap_future(found)


async def together(works: Iterable[Awaitable[_Answer]]) -> list[_Answer]:
    """Await several at once and return their answers in order; the first failure cancels the others and is raised."""

    async def run(work: Awaitable[_Answer]) -> _Answer:
        return await work

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(work)) for work in works]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _of_request(function: Callable[[], _Answer], field: str) -> _Answer:
    try:
        return function()
    except FovealError as error:
        raise problem_of(error, field=field) from error
