"""Fitting a dense head: from features computed once, or from crops drawn anew in every step; both resume exactly.

Everything drawn is a function of (seed, step). Shapes: B images, H W pixels.
"""

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from foveal.backbone.weights import load_tensors
from foveal.errors import FovealError
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.files import write_atomically
from foveal.images.preprocess import normalise, resize, short_side_shape
from foveal.tasks.dense import Level, batch_of, levels_of, resized
from foveal.tasks.depth import WARM_UP_STEPS, gradient_loss, sig_loss
from foveal.tasks.head import Head, HeadCard, build_network
from foveal.tasks.samples import DenseSet
from foveal.tasks.segment import IGNORED, segmentation_loss

MAX_CACHE_BYTES = 4_000_000_000
_CLIP = 35.0
_WARM_UP_SHARE = 0.0375  # 1,500 of 40,000 steps
_LOWEST = 1e-6

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitSettings:
    """How a head is fitted; the defaults are the published protocol for segmentation on fewer steps.

    Attributes:
        steps: optimizer updates.
        batch_size: pictures a step.
        learning_rate: of AdamW, after a linear warm-up over 3.75 % of the steps; then linear to 0.
        weight_decay: of AdamW.
        size: short side of the pictures, pixels; None is their own.
        crop_size: side of the crops, pixels; 0 keeps whole pictures as they are, whose features are then computed once
            and kept in memory: the same losses, far fewer passes of the backbone.
        scales: of the random resizing before a crop.
        seed: of everything drawn.
        save_every: steps between states from which fitting resumes.
    """

    steps: int = 2000
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    size: int | None = None
    crop_size: int = 0
    scales: tuple[float, float] = (0.5, 2.0)
    seed: int = 0
    save_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "save_every"):
            if getattr(self, name) < 1:
                raise FovealError(f"{name}={getattr(self, name)}; it must be at least 1")
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.crop_size < 0:
            raise FovealError(
                f"learning_rate={self.learning_rate}, weight_decay={self.weight_decay}, crop_size={self.crop_size}; "
                "the first must be above 0, the others not below"
            )


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
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = build_network(card).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=settings.weight_decay)
    stamp = _stamp(model, card, samples, settings)
    first = _restore(state, network, optimizer, stamp) if state is not None else 0
    batch_at = (
        _cropped(model, card, samples, settings) if settings.crop_size else _cached(model, card, samples, settings)
    )
    loss_of = _loss(card, warm_up=min(WARM_UP_STEPS, settings.steps // 10))
    loss = math.nan
    for step in range(first, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _rate(step, settings.steps)
        batch = batch_at(step)
        value = loss_of(_seen(network(batch.levels), batch, model.card.backbone.patch_size), batch.targets, step)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), _CLIP, error_if_nonfinite=True)
        optimizer.step()
        loss = value.item()
        if state is not None and (step + 1) % settings.save_every == 0 and step + 1 < settings.steps:
            _save(state, network, optimizer, step + 1, stamp)
        if progress:
            progress(step + 1, settings.steps)
    if state is not None:
        state.unlink(missing_ok=True)
    lineage = {"fit": asdict(settings), "data": samples.hash, "num_images": len(samples), "last_loss": loss}
    return Head(network.eval(), card.model_copy(update={"lineage": {**card.lineage, **lineage}}))


def _loss(card: HeadCard, *, warm_up: int) -> Callable[[Tensor, Tensor, int], Tensor]:
    if card.task == "segmentation":
        return lambda found, targets, step: segmentation_loss(found, targets)
    limit = card.settings.get("max_depth")

    def depth_loss(found: Tensor, targets: Tensor, step: int) -> Tensor:
        wanted = targets.unsqueeze(1)
        loss = sig_loss(found, wanted, max_depth=limit, warm_up=step < warm_up)
        # As published: gradients count half, and for the DPT head alone, whose maps have the detail.
        return loss + 0.5 * gradient_loss(found, wanted, max_depth=limit) if card.architecture == "dpt" else loss

    return depth_loss


def _seen(found: Tensor, batch: Batch, patch_size: int) -> Tensor:
    """Return maps (B, K, H, W) of the pictures, without the zeros that were put around them."""
    top, left, height, width = batch.window
    padded = (height + -height % patch_size, width + -width % patch_size)
    return resized(found, padded)[:, :, top : top + height, left : left + width]


def _rate(step: int, steps: int) -> float:
    """Return the share of the learning rate at a step."""
    warm_up = max(round(_WARM_UP_SHARE * steps), 1)
    if step < warm_up:
        return _LOWEST + (1 - _LOWEST) * step / warm_up
    return 1 - step / steps


def _cached(model: Model, card: HeadCard, samples: DenseSet, settings: FitSettings) -> Callable[[int], Batch]:
    """Compute the features of whole pictures once; a batch is of pictures of one size."""
    kept: list[Batch] = []
    num_bytes = 0
    for index in range(len(samples)):
        pixels, target = _sized(*samples.load(index, channels=model.card.backbone.channels), settings.size)
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
        drawn = [_crop(*samples.load(int(i), channels=channels), settings, generator) for i in chosen]
        pixels, targets = zip(*drawn, strict=True)
        return _encoded(model, card, pixels, targets)

    return batch_at


def _crop(
    pixels: np.ndarray, target: np.ndarray, settings: FitSettings, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Resize by a random factor, cut a square out, mirror half of the time; outside the picture nothing counts."""
    short = settings.size or min(target.shape)
    pixels, target = _sized(pixels, target, max(round(short * generator.uniform(*settings.scales)), 1))
    side = settings.crop_size
    top, left = (int(generator.integers(max(length - side, 0) + 1)) for length in target.shape)
    pixels, target = pixels[top : top + side, left : left + side], target[top : top + side, left : left + side]
    below, right = side - target.shape[0], side - target.shape[1]
    ignored = IGNORED if target.dtype.kind == "i" else 0
    pixels = np.pad(pixels, ((0, below), (0, right), (0, 0)))
    target = np.pad(target, ((0, below), (0, right)), constant_values=ignored)
    if generator.random() < 0.5:
        pixels, target = pixels[:, ::-1], target[:, ::-1]
    return np.ascontiguousarray(pixels), np.ascontiguousarray(target)


def _sized(pixels: np.ndarray, target: np.ndarray, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Bring a picture, and its answer by nearest neighbours, to a short side."""
    if size is None or size == min(target.shape):
        return pixels, target
    height, width = short_side_shape(*target.shape, size=size)
    rows = ((np.arange(height) + 0.5) * target.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * target.shape[1] / width).astype(int)
    return resize(pixels, height=height, width=width), target[rows][:, columns]


def _encoded(model: Model, card: HeadCard, pixels: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Batch:
    mean, std = tuple(model.card.mean), tuple(model.card.std)
    images = batch_of([normalise(one, mean=mean, std=std) for one in pixels])
    levels, window = levels_of(
        model.engine, images, layers=card.layers, norm=card.norm, patch_size=model.card.backbone.patch_size
    )
    return Batch([Level(*(part.cpu() for part in level)) for level in levels], window, batch_of(targets))


def _stamp(model: Model, card: HeadCard, samples: DenseSet, settings: FitSettings) -> str:
    """Return a hash of everything that decides the numbers."""
    what = [model.identity, card.model_dump_json(), samples.hash, json.dumps(asdict(settings))]
    return sha256("\n".join(what).encode()).hexdigest()


def _save(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, step: int, stamp: str) -> None:
    tensors = {f"head.{name}": value for name, value in network.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
    data = save({name: value.contiguous() for name, value in tensors.items()}, {"step": str(step), "stamp": stamp})
    write_atomically(path, data)


def _restore(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, stamp: str) -> int:
    """Load a state, if there is one, and return the step to go on with."""
    if not path.is_file():
        return 0
    tensors = load_tensors(path)
    with safetensors.safe_open(path, framework="pt") as file:
        written = file.metadata() or {}
    if written.get("stamp") != stamp:
        raise FovealError(
            f"{path} is the state of a fit with another model, data or settings; finish that one, or remove the file"
        )
    network.load_state_dict({n.removeprefix("head."): t for n, t in tensors.items() if n.startswith("head.")})
    whole = optimizer.state_dict()
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            whole["state"].setdefault(int(number), {})[key] = value
    optimizer.load_state_dict(whole)
    logger.info("going on with step %s of %s", written["step"], path)
    return int(written["step"])
