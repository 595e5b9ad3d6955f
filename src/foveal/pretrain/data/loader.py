"""From image numbers to micro-batches of views: the same bytes whatever the number of workers."""

import signal
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from foveal.errors import BadImageError, RecipeError
from foveal.images.imageset import ImageSet
from foveal.pretrain.data.masks import make_masks
from foveal.pretrain.data.photometric import apply_plans
from foveal.pretrain.data.sampler import batch_indices, replacement
from foveal.pretrain.data.views import Views, ViewSettings, make_views, sizes_of
from foveal.pretrain.network import Batch
from foveal.pretrain.processes.parallel import ALONE, World
from foveal.pretrain.recipe import Recipe

_MAX_ATTEMPTS = 100


class BadImage(NamedTuple):
    """An image that was skipped: its number in the set, and why."""

    number: int
    reason: str
    message: str


class Photometric(NamedTuple):
    """What is left to do on the device: plans (2 B, 11) and (V B, 11) float32, crop after crop; see photometric.py."""

    global_plans: Tensor
    local_plans: Tensor
    blur_kernel_size: int
    solarize_threshold: int


class RawBatch(NamedTuple):
    """A micro-batch of B images as the workers make it.

    global_crops: (2 B, S, S, C) uint8 or uint16, first crops of all images, then second; local_crops: (V B, s, s, C),
    crop after crop; masks: (2 B, P) bool; bad: the images that were replaced; failure: where no image was left to
    replace one, the reason, and then there are no crops. It is a value, because an exception that crosses a process
    border brings its traceback along in its message. numbers: of the images shown, in the set. anchor_crops: the
    global crops at the resolution of the Gram term's anchor, where that is another. photometric: with
    `views.photometric: device`, what `finished` has yet to do.
    """

    global_crops: Tensor
    local_crops: Tensor
    masks: Tensor
    bad: list[BadImage]
    failure: str = ""
    numbers: Sequence[int] = ()
    anchor_crops: Tensor | None = None
    photometric: Photometric | None = None


class MicroBatches(Dataset[RawBatch]):
    """Micro-batch number n of a run, as a pure function of the recipe, the image set and n.

    A step holds batch_size / micro_batch_size of them, so n counts on through the steps.
    """

    def __init__(self, images: ImageSet, recipe: Recipe) -> None:
        self.images = images
        self.recipe = recipe
        self._anchor_factor = recipe.gram.resolution_factor if recipe.gram else 1

    def __getitem__(self, number: int) -> RawBatch:
        """Return micro-batch `number`, counted from the start of the run."""
        recipe = self.recipe
        epochs, indices = batch_indices(
            number, batch_size=recipe.micro_batch, num_images=len(self.images), seed=recipe.seed
        )
        step, group = divmod(number, recipe.batch_size // recipe.micro_batch)
        settings = sizes_of(recipe.views, seed=recipe.seed, step=step, group=group)
        views: list[Views] = []
        bad: list[BadImage] = []
        numbers: list[int] = []
        for epoch, index in zip(epochs.tolist(), indices.tolist(), strict=True):
            found = self._sample(epoch, index, settings, bad)
            if found is None:
                none = torch.empty(0)
                return RawBatch(none, none, none, bad, failure=f"no usable image found, the last: {bad[-1].message}")
            numbers.append(found[0])
            views.append(found[1])
        grid = settings.global_size // recipe.backbone.patch_size
        masks = make_masks(
            num_images=2 * len(views),
            grid_h=grid,
            grid_w=grid,
            seed=recipe.seed,
            step=step,
            group=group,
            mask_probability=recipe.masks.probability,
            ratio_min=recipe.masks.ratio_min,
            ratio_max=recipe.masks.ratio_max,
        )
        return RawBatch(
            _crop_major([view.global_crops for view in views]),
            _crop_major([view.local_crops for view in views]),
            torch.from_numpy(masks),
            bad,
            numbers=numbers,
            anchor_crops=_crop_major([view.anchor_crops for view in views]) if self._anchor_factor > 1 else None,
            photometric=_photometric([view.plans for view in views if view.plans is not None], settings),
        )

    def _sample(self, epoch: int, index: int, settings: ViewSettings, bad: list[BadImage]) -> tuple[int, Views] | None:
        """Return the image of one slot and its views, None when it cannot be filled; add unreadable ones to `bad`."""
        seed, num_images = self.recipe.seed, len(self.images)
        for attempt in range(min(_MAX_ATTEMPTS, num_images)):
            chosen = (
                replacement(index, attempt - 1, num_images=num_images, seed=seed, epoch=epoch) if attempt else index
            )
            try:
                image = self.images.decode(chosen, channels=self.recipe.backbone.channels)
                views = make_views(
                    image,
                    settings=settings,
                    seed=seed,
                    epoch=epoch,
                    index=chosen,
                    anchor_factor=self._anchor_factor,
                )
                return chosen, views
            except BadImageError as error:
                bad.append(BadImage(chosen, error.reason, str(error)))
        return None


def check_deal(recipe: Recipe, world: World) -> None:
    """RecipeError where the micro-batches of a step cannot be dealt evenly to the processes."""
    count, size = recipe.batch_size // recipe.micro_batch, world.size
    if count % size == 0:
        return
    sizes = [m for m in range(1, recipe.micro_batch) if recipe.batch_size % (m * size) == 0]
    advice = f"micro_batch_size={sizes[-1]}" if sizes else f"a batch_size that is a multiple of {size}"
    raise RecipeError(
        f"batch_size={recipe.batch_size} is {count} micro-batch{'es' * (count > 1)} of {recipe.micro_batch}, which "
        f"cannot be dealt evenly to {size} processes; use {advice}, or another number of processes"
    )


def micro_batches(images: ImageSet, recipe: Recipe, *, steps: range, world: World = ALONE) -> DataLoader[RawBatch]:
    """Return an iterable over this process's micro-batches of some steps, step after step.

    Those of a step are dealt to the processes in equal blocks. Each process has `recipe.num_workers` workers, or makes
    them itself where that is 0.
    """
    per_step = recipe.batch_size // recipe.micro_batch
    part = world.part(per_step)
    return DataLoader(
        MicroBatches(images, recipe),
        batch_size=None,
        sampler=_Numbers(steps, per_step=per_step, part=part),
        num_workers=recipe.num_workers,
        prefetch_factor=4 if recipe.num_workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(0),  # else the loader would draw from the global one
    )


class _Numbers(Sampler[int]):
    """The numbers of the micro-batches in `part` of every step; they are counted on through the steps."""

    def __init__(self, steps: range, *, per_step: int, part: range) -> None:
        self._steps, self._per_step, self._part = steps, per_step, part

    def __iter__(self) -> Iterator[int]:
        return (step * self._per_step + number for step in self._steps for number in self._part)

    def __len__(self) -> int:
        return len(self._steps) * len(self._part)


class StepBatches(Sequence[Batch]):
    """The micro-batches of one step, normalised on the device when one is asked for; the latest stays there.

    They are kept as the workers made them, because a step reads them more than once and all of them as float32 may be
    more than the device holds.
    """

    def __init__(
        self, raw: Sequence[RawBatch], *, mean: Sequence[float], std: Sequence[float], device: torch.device
    ) -> None:
        self._raw, self._mean, self._std, self._device = raw, mean, std, device
        self._latest: tuple[int, Batch] | None = None

    def __len__(self) -> int:
        """Return the number of micro-batches."""
        return len(self._raw)

    @overload
    def __getitem__(self, number: int) -> Batch: ...
    @overload
    def __getitem__(self, number: slice) -> list[Batch]: ...
    def __getitem__(self, number: int | slice) -> Batch | list[Batch]:
        """Return a micro-batch, or several."""
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        if self._latest is None or self._latest[0] != number:
            raw = self._raw[number]
            self._latest = (number, to_batch(raw, mean=self._mean, std=self._std, device=self._device))
        return self._latest[1]


class Waiting(Iterator[RawBatch]):
    """Passes micro-batches on and counts the seconds for which they were waited for, making them here included."""

    def __init__(self, batches: Iterator[RawBatch]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __next__(self) -> RawBatch:
        """Return the next micro-batch."""
        started = time.perf_counter()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.perf_counter() - started


def to_batch(raw: RawBatch, *, mean: Sequence[float], std: Sequence[float], device: torch.device) -> Batch:
    """Move a micro-batch to the device and normalise its crops to float32 (B, C, H, W).

    `mean` and `std` are shares of full scale: 255 for uint8, 65535 for uint16.
    """
    done = finished(raw, device=device)
    return Batch(
        _normalise(done.global_crops, mean, std),
        _normalise(done.local_crops, mean, std),
        raw.masks.to(device),
        None if done.anchor_crops is None else _normalise(done.anchor_crops, mean, std),
    )


def finished(raw: RawBatch, *, device: torch.device) -> RawBatch:
    """Return the micro-batch with its crops on the device, and what the workers left undone done to them."""
    left, anchor = raw.photometric, raw.anchor_crops

    def done(crops: Tensor, plans: Tensor | None, enlarged: int = 1) -> Tensor:
        crops = crops.to(device, non_blocking=True)
        if left is None or plans is None:
            return crops
        kernel_size, threshold = left.blur_kernel_size, left.solarize_threshold
        return apply_plans(crops, plans, blur_kernel_size=kernel_size, solarize_threshold=threshold, enlarged=enlarged)

    global_plans, local_plans = (left.global_plans, left.local_plans) if left else (None, None)
    factor = 1 if anchor is None else anchor.shape[1] // raw.global_crops.shape[1]
    return raw._replace(
        global_crops=done(raw.global_crops, global_plans),
        local_crops=done(raw.local_crops, local_plans),
        anchor_crops=None if anchor is None else done(anchor, global_plans, factor),
        photometric=None,
    )


def _normalise(crops: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    full = torch.iinfo(crops.dtype).max
    factor = torch.tensor([1 / (full * s) for s in std], device=crops.device).view(1, -1, 1, 1)
    offset = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=crops.device).view(1, -1, 1, 1)
    channels_first = crops.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return channels_first.mul_(factor).add_(offset)


def _crop_major(crops: list[np.ndarray]) -> Tensor:
    """(V, S, S, C) of each image -> (V B, S, S, C), crop after crop; 8-bit images beside 16-bit ones become 16-bit."""
    if len({crop.dtype for crop in crops}) > 1:
        crops = [crop if crop.dtype == np.uint16 else crop.astype(np.uint16) * np.uint16(257) for crop in crops]
    stacked = np.stack(crops, axis=1)
    return torch.from_numpy(stacked.reshape(-1, *stacked.shape[2:]))


def _photometric(plans: list[np.ndarray], settings: ViewSettings) -> Photometric | None:
    if not plans:
        return None
    in_order = torch.from_numpy(np.stack(plans, axis=1))  # (2 + V, B, 11)
    global_plans, local_plans = (part.flatten(0, 1) for part in in_order.split([2, len(in_order) - 2]))
    return Photometric(global_plans, local_plans, settings.blur_kernel_size, settings.solarize_threshold)


def _start_worker(_worker: int) -> None:
    """Give OpenCV one thread, as PyTorch has in a worker, and leave signals to the main process.

    Signals reach the whole process group; the main process saves and then ends the workers.
    """
    cv2.setNumThreads(0)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _overhear)


def _overhear(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one is meant for this worker
