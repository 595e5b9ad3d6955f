"""Fitting a dense head: from features computed once, or from crops drawn anew in every step; both resume exactly.

Everything drawn is a function of (seed, step). Shapes: B images, H W pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from foveal.errors import FovealError
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.images.preprocess import normalise
from foveal.tasks.crops import random_crop, sized
from foveal.tasks.dense import Level, batch_of, levels_of, resized
from foveal.tasks.depth import WARM_UP_STEPS, gradient_loss, sig_loss
from foveal.tasks.head import Head, HeadCard
from foveal.tasks.protocols import FitSettings
from foveal.tasks.samples import DenseSet
from foveal.tasks.segment import segmentation_loss
from foveal.tasks.steps import LossAt, run_steps

MAX_CACHE_BYTES = 4_000_000_000


class Batch(NamedTuple):
    """What a head learns from: levels of padded pictures, the window of the pictures in them, targets (B, H, W)."""

    levels: list[Level]
    window: tuple[int, int, int, int]
    targets: Tensor


def fit_head(
    model: Model,
    card: HeadCard,
    samples: DenseSet,
    settings: FitSettings,
    *,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Head:
    """Fit the head that a card describes.

    A state is saved every `settings.save_every_s` seconds, and when Ctrl-C or SIGTERM asks for the end: after the step
    that was begun.

    Args:
        model: the frozen backbone.
        card: of the head; its lineage is filled in.
        samples: train pictures.
        settings: see there.
        state: file from which an interrupted fit goes on, and into which it is saved; removed at the end.
        progress: called with (steps done, steps in all).

    Raises:
        FovealError: a state of other settings, or more features than fit into memory.
        BadImageError: a picture or a target that cannot be used.
    """

    def losses() -> LossAt:
        batch_at = (_cached if settings.crop_size is None else _cropped)(model, card, samples, settings)
        loss = loss_of(card, warm_up=min(WARM_UP_STEPS, settings.steps // 10))

        def loss_at(network: nn.Module, step: int) -> Tensor:
            batch = batch_at(step)
            found = seen(network(batch.levels), batch.window, patch_size=model.card.backbone.patch_size)
            return loss(found, batch.targets, step)

        return loss_at

    network, last = run_steps(model, card, samples.hash, settings, losses, state=state, progress=progress)
    lineage = {"fit": asdict(settings), "data": samples.hash, "num_images": len(samples), "last_loss": last}
    return Head(network, card.model_copy(update={"lineage": {**card.lineage, **lineage}}))


def loss_of(card: HeadCard, *, warm_up: int) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Return the loss of a dense head as a function of its maps (B, K, H, W), targets (B, H, W) and the step."""
    if card.task == "segmentation":
        return lambda found, targets, step: segmentation_loss(found, targets)
    limit = card.settings.get("max_depth")

    def depth_loss(found: Tensor, targets: Tensor, step: int) -> Tensor:
        wanted = targets.unsqueeze(1)
        loss = sig_loss(found, wanted, max_depth=limit, warm_up=step < warm_up)
        # As published: gradients count half, and for the DPT head alone, whose maps have the detail.
        return loss + 0.5 * gradient_loss(found, wanted, max_depth=limit) if card.architecture == "dpt" else loss

    return depth_loss


def seen(found: Tensor, window: tuple[int, int, int, int], *, patch_size: int) -> Tensor:
    """Return maps (B, K, H, W) of the pictures, without the zeros that were put around them."""
    top, left, height, width = window
    padded = (height + -height % patch_size, width + -width % patch_size)
    return resized(found, padded)[:, :, top : top + height, left : left + width]


def _cached(model: Model, card: HeadCard, samples: DenseSet, settings: FitSettings) -> Callable[[int], Batch]:
    """Compute the features of whole pictures once; a batch is of pictures of one size."""
    kept: list[Batch] = []
    num_bytes = 0
    for index in range(len(samples)):
        pixels, target = sized(*samples.load(index, channels=model.card.backbone.channels), settings.size)
        kept.append(_encoded(model, card, [pixels], [target]))
        num_bytes += sum(part.nbytes for level in kept[-1].levels for part in level) + kept[-1].targets.nbytes
        if num_bytes * len(samples) > MAX_CACHE_BYTES * (index + 1):
            needed = num_bytes / (index + 1) * len(samples) / 1e9
            raise FovealError(
                f"the features of {len(samples)} pictures would take {needed:.1f} "
                f"GB of memory, allowed are {MAX_CACHE_BYTES / 1e9:g}; give a crop_size, or a smaller size"
            )
    by_size: dict[tuple[int, ...], list[int]] = {}
    for number, one in enumerate(kept):
        by_size.setdefault(tuple(one.targets.shape), []).append(number)

    def batch_at(step: int) -> Batch:
        generator = np.random.default_rng((settings.seed, step))
        same = by_size[tuple(kept[generator.integers(len(kept))].targets.shape)]
        chosen = [kept[i] for i in generator.choice(same, min(settings.batch_size, len(same)), replace=False)]
        levels = [
            Level(*(torch.cat(part) for part in zip(*many, strict=True)))
            for many in zip(*(c.levels for c in chosen), strict=True)
        ]
        return Batch(levels, chosen[0].window, torch.cat([one.targets for one in chosen]))

    return batch_at


def _cropped(model: Model, card: HeadCard, samples: DenseSet, settings: FitSettings) -> Callable[[int], Batch]:
    """Draw crops of resized and mirrored pictures in every step."""

    def batch_at(step: int) -> Batch:
        generator = np.random.default_rng((settings.seed, step))
        chosen = generator.choice(len(samples), settings.batch_size, replace=len(samples) < settings.batch_size)
        channels = model.card.backbone.channels
        drawn = [random_crop(*samples.load(int(i), channels=channels), settings, generator) for i in chosen]
        pixels, targets = zip(*drawn, strict=True)
        return _encoded(model, card, pixels, targets)

    return batch_at


def _encoded(model: Model, card: HeadCard, pixels: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Batch:
    mean, std = tuple(model.card.mean), tuple(model.card.std)
    images = batch_of([normalise(one, mean=mean, std=std) for one in pixels])
    levels, window = levels_of(
        model.engine, images, layers=card.layers, norm=card.norm, patch_size=model.card.backbone.patch_size
    )
    return Batch([Level(*(part.cpu() for part in level)) for level in levels], window, batch_of(targets))
