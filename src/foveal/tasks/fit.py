"""Fitting a dense head: from features computed once, or from crops drawn anew in every step; both resume exactly.

Everything drawn is a function of (seed, step). Shapes: B images, H W pixels.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from foveal.errors import FovealError, ImageSetError
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.images.preprocess import normalise
from foveal.tasks.crops import prepared_crop, sized
from foveal.tasks.dense import Level, batch_of, levels_of, resized
from foveal.tasks.depth import WARM_UP_STEPS, gradient_loss, sig_loss, valid_depth
from foveal.tasks.head import Head, HeadCard
from foveal.tasks.protocols import FitSettings
from foveal.tasks.samples import DenseSet
from foveal.tasks.segment import IGNORED, segmentation_loss
from foveal.tasks.steps import LossAt, run_steps

MAX_CACHE_BYTES = 4_000_000_000

logger = logging.getLogger(__name__)


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

    A state is saved every `settings.save_every_s` seconds, after the last step, and when Ctrl-C or SIGTERM asks for the
    end: after the step that was begun.

    Args:
        model: the frozen backbone.
        card: of the head; its lineage is filled in.
        samples: train pictures.
        settings: see there.
        state: file from which an interrupted fit goes on, and into which it is saved, also at the end: once the head is
            kept it can be removed.
        progress: called with (steps done, steps in all).

    Raises:
        FovealError: a state of other settings, or more features than fit into memory.
        ImageSetError: no pixel of any picture has an answer to learn from.
        BadImageError: a picture or a target that cannot be used.
    """
    check_targets(card, samples)

    def losses() -> LossAt:
        batches_at = (_cached if settings.crop_size is None else _cropped)(model, card, samples, settings)
        loss = loss_of(card, warm_up=min(WARM_UP_STEPS, settings.steps // 10))

        def loss_at(network: nn.Module, step: int) -> Tensor:
            device = next(network.parameters()).device
            found, counts = [], []
            for levels, window, targets in batches_at(step):
                maps = network([Level(*(part.to(device) for part in level)) for level in levels])
                pictures = seen(maps, window, patch_size=model.card.backbone.patch_size)
                found.append(loss(pictures, targets.to(device), step) * len(targets))
                counts.append(len(targets))
            return torch.stack(found).sum() / sum(counts)

        return loss_at

    network, last = run_steps(model, card, samples.hash, settings, losses, state=state, progress=progress)
    lineage = {"fit": asdict(settings), "data": samples.hash, "num_images": len(samples), "last_loss": last}
    return Head(network, card.model_copy(update={"lineage": {**card.lineage, **lineage}}))


def check_targets(card: HeadCard, samples: DenseSet) -> None:
    """Refuse masks or depth that teach nothing, before long work: they are read up to the first that does.

    Raises:
        ImageSetError: no pixel has a class that counts, or a depth in the range of the head.
    """
    limit, highest = card.settings.get("max_depth"), 0.0
    for index in range(len(samples)):
        target = torch.from_numpy(samples.target(index))
        known = target != IGNORED if card.task == "segmentation" else valid_depth(target, max_depth=limit)
        if known.any():
            return
        highest = max(highest, float(target.max()))
    if card.task == "segmentation":
        raise ImageSetError(f"no pixel of {len(samples)} train masks counts; check the values that are ignored")
    reach = "" if limit is None else f" and up to {limit:g} m"
    raise ImageSetError(
        f"none of {len(samples)} train pictures has a depth above 0{reach}, the highest is "
        f"{highest:g} m; check the unit of the files and the end of the range"
    )


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


def _cached(model: Model, card: HeadCard, samples: DenseSet, settings: FitSettings) -> Callable[[int], list[Batch]]:
    """Compute the features of whole pictures once; the pictures of a step are in one batch for each of their sizes."""
    logger.info("computing the features of %d pictures once", len(samples))
    kept: list[Batch] = []
    num_bytes = 0
    for index in range(len(samples)):
        pixels, target = sized(*samples.load(index, channels=model.card.backbone.channels), settings.size)
        image = normalise(pixels, mean=tuple(model.card.mean), std=tuple(model.card.std))
        kept.append(_encoded(model, card, [image], [target]))
        num_bytes += sum(part.nbytes for level in kept[-1].levels for part in level) + kept[-1].targets.nbytes
        if num_bytes * len(samples) > MAX_CACHE_BYTES * (index + 1):
            needed = num_bytes / (index + 1) * len(samples) / 1e9
            raise FovealError(
                f"the features of {len(samples)} pictures would take {needed:.1f} "
                f"GB of memory, allowed are {MAX_CACHE_BYTES / 1e9:g}; give a crop_size, or a smaller size"
            )

    def batches_at(step: int) -> list[Batch]:
        generator = np.random.default_rng((settings.seed, step))
        by_size: dict[tuple[int, ...], list[Batch]] = {}
        for number in generator.choice(len(kept), min(settings.batch_size, len(kept)), replace=False):
            by_size.setdefault(tuple(kept[number].targets.shape), []).append(kept[number])
        return [_joined(batches) for batches in by_size.values()]

    return batches_at


def _joined(batches: Sequence[Batch]) -> Batch:
    """Return batches of pictures of one size as one."""
    levels = [
        Level(*(torch.cat(part) for part in zip(*many, strict=True)))
        for many in zip(*(batch.levels for batch in batches), strict=True)
    ]
    return Batch(levels, batches[0].window, torch.cat([batch.targets for batch in batches]))


def _cropped(model: Model, card: HeadCard, samples: DenseSet, settings: FitSettings) -> Callable[[int], list[Batch]]:
    """Draw crops of resized and mirrored pictures in every step."""

    def batches_at(step: int) -> list[Batch]:
        generator = np.random.default_rng((settings.seed, step))
        chosen = generator.choice(len(samples), settings.batch_size, replace=len(samples) < settings.batch_size)
        channels, mean, std = model.card.backbone.channels, model.card.mean, model.card.std
        drawn = [
            prepared_crop(*samples.load(int(i), channels=channels), settings, generator, mean=mean, std=std)
            for i in chosen
        ]
        images, targets = zip(*drawn, strict=True)
        return [_encoded(model, card, images, targets)]

    return batches_at


def _encoded(model: Model, card: HeadCard, images: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Batch:
    levels, window = levels_of(
        model.engine, batch_of(images), layers=card.layers, norm=card.norm, patch_size=model.card.backbone.patch_size
    )
    return Batch([Level(*(part.cpu() for part in level)) for level in levels], window, batch_of(targets))
