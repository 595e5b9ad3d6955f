"""Fitting a classification head on fixed views: from features computed once where they fit into memory, else anew.

Everything drawn is a function of (seed, step). Shapes: N images, B images a step, L blocks, D width, P patches.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.errors import FovealError, ImageSetError
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.features.labels import number_labels
from foveal.features.tokens import Token
from foveal.images.imageset import ImageSet
from foveal.tasks.classify import Tokens
from foveal.tasks.head import Head, HeadCard
from foveal.tasks.protocols import FitSettings
from foveal.tasks.steps import LossAt, run_steps

MAX_CACHE_BYTES = 4_000_000_000
_BLOCK = 256  # images measured at a time
HELD_OUT = 10  # one in so many train images measures the head

logger = logging.getLogger(__name__)

TokensAt = Callable[[Sequence[int]], tuple[Tokens, list[int]]]  # of some images: tokens, and which could be read


class Fitted(NamedTuple):
    """A head, and its accuracy in percent on the images that were held out; None where none could be."""

    head: Head
    accuracy: float | None


def fit_classifier(
    model: Model,
    card: HeadCard,
    images: ImageSet,
    settings: FitSettings,
    *,
    max_cache_bytes: int = MAX_CACHE_BYTES,
    state: Path | None = None,
    extracting: Progress | None = None,
    progress: Progress | None = None,
) -> Fitted:
    """Fit the classification head that a card describes, on the views that the model's card says.

    A tenth of the images, drawn with the seed, is held out to measure it, but never the last image of a class.

    Args:
        model: the frozen backbone.
        card: of the head, with the class names of the images in their order; its lineage is filled in.
        images: labelled train images.
        settings: see there; sizes, crops and colours are for dense heads.
        max_cache_bytes: where the features take more, the backbone runs in every step instead.
        state: file from which an interrupted fit goes on, and into which it is saved, also at the end: once the head is
            kept it can be removed.
        extracting: called with (images done, images in all) while features are computed.
        progress: called with (steps done, steps in all).

    Raises:
        ImageSetError: images without labels, or of one class.
        FovealError: settings of dense heads, or a state of other settings.
    """
    labels, classes = _labels(images)
    _check(card, classes, settings)
    kept, held_out = hold_out(labels, seed=settings.seed)
    found: list[TokensAt] = []

    def losses() -> LossAt:
        tokens_at = _tokens(model, card, images, max_cache_bytes, extracting)
        found.append(tokens_at)

        def loss_at(network: nn.Module, step: int) -> Tensor:
            tokens, numbers = tokens_at(drawn(step, kept, settings).tolist())
            if len(numbers) < 2:
                raise ImageSetError(f"{len(numbers)} images of step {step} can be read; check the source")
            device = next(network.parameters()).device
            logits = network(Tokens(*(part.to(device) for part in tokens)))
            return F.cross_entropy(logits, labels[numbers].to(device))

        return loss_at

    network, last = run_steps(model, card, images.hash, settings, losses, state=state, progress=progress)
    accuracy = _accuracy(network, found[0], held_out.tolist(), labels)
    lineage = {
        "fit": {name: value for name, value in asdict(settings).items() if name not in _DENSE},
        "data": images.hash,
        "num_images": len(kept),
        "held_out": {"num_images": len(held_out), "top-1": accuracy},
        "last_loss": last,
    }
    return Fitted(Head(network, card.model_copy(update={"lineage": {**card.lineage, **lineage}})), accuracy)


_DENSE = ("size", "crop_size", "scales", "distort", "max_class_share")


def _labels(images: ImageSet) -> tuple[Tensor, list[str]]:
    """Return the class numbers (N,) of train images, and the names."""
    labels, _, classes = number_labels(images, images)
    if len(classes) < 2:
        raise ImageSetError(f"all {len(images)} images are of the class {classes[0]}; give images of two or more")
    if single := [name for name, count in zip(classes, labels.bincount().tolist(), strict=True) if count == 1]:
        logger.warning(
            "%d of %d classes have one image, which is trained on and never held out: %s%s",
            len(single),
            len(classes),
            ", ".join(single[:3]),
            ", ..." if len(single) > 3 else "",
        )
    return labels, classes


def _check(card: HeadCard, classes: Sequence[str], settings: FitSettings) -> None:
    if card.classes != list(classes):
        raise FovealError(f"the card names {len(card.classes)} classes, and the images have {len(classes)}, or others")
    if settings.batch_size < 2:
        raise FovealError(f"batch_size={settings.batch_size}; give at least 2 images a step")
    default = FitSettings()
    if wrong := [name for name in _DENSE if getattr(settings, name) != getattr(default, name)]:
        raise FovealError(f"{wrong[0]}={getattr(settings, wrong[0])} is for dense heads; leave it out")


def hold_out(labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices to train on and those of a tenth to measure on, so that every class keeps an image."""
    left = Counter(labels.tolist())
    chosen: list[int] = []
    for index in torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist():
        if len(chosen) < len(labels) // HELD_OUT and left[int(labels[index])] > 1:
            left[int(labels[index])] -= 1
            chosen.append(index)
    held_out = torch.tensor(sorted(chosen), dtype=torch.int64)
    mask = torch.ones(len(labels), dtype=torch.bool)
    mask[held_out] = False
    return mask.nonzero()[:, 0], held_out


def drawn(step: int, kept: Tensor, settings: FitSettings) -> Tensor:
    """Return the indices (B,) of a step, which go on in the order of the epoch where the last step ended."""
    size = min(settings.batch_size, len(kept))
    parts, first, end = [], step * size, (step + 1) * size
    while first < end:
        epoch, place = divmod(first, len(kept))
        order = np.random.default_rng((settings.seed, epoch)).permutation(len(kept))
        parts.append(kept[order[place : place + end - first]])
        first += len(parts[-1])
    return torch.cat(parts)


def _tokens(model: Model, card: HeadCard, images: ImageSet, max_bytes: int, progress: Progress | None) -> TokensAt:
    """Return what gives the tokens of images: from memory where they fit, else by running the backbone."""
    num_patches = (model.card.crop_size // model.card.backbone.patch_size) ** 2 if _reads_patches(card) else 1
    num_bytes = 4 * len(images) * model.card.backbone.width * (len(card.layers) + num_patches)
    if num_bytes > max_bytes:
        logger.info("features would take %.1f GB: the backbone runs in every step", num_bytes / 1e9)
        settled = model.settle(images, layers=card.layers)

        def computed(indices: Sequence[int]) -> tuple[Tokens, list[int]]:
            tokens, places = _read(settled, card, images.subset(indices))
            return tokens, [indices[place] for place in places]

        return computed
    whole, numbers = _read(model, card, images, progress)
    row_of = {index: row for row, index in enumerate(numbers)}

    def remembered(indices: Sequence[int]) -> tuple[Tokens, list[int]]:
        good = [index for index in indices if index in row_of]
        rows = torch.tensor([row_of[index] for index in good], dtype=torch.int64)
        return Tokens(whole.cls[rows], whole.patches[rows]), good

    return remembered


def _read(model: Model, card: HeadCard, images: ImageSet, progress: Progress | None = None) -> tuple[Tokens, list[int]]:
    """Return the tokens of the images that can be read, and their indices; of patches only what the head reads."""
    kind: Token = "patches" if _reads_patches(card) else "mean"
    names = [f"cls.layer{layer}" for layer in card.layers]
    parts, numbers = [], []
    for indices, arrays in model.stream_set(images, what=("cls", kind), layers=card.layers, progress=progress):
        numbers += indices.tolist()
        patches = arrays[f"{kind}.layer{card.layers[-1]}"].reshape(len(indices), -1, model.card.backbone.width)
        parts.append(Tokens(torch.stack([arrays[name] for name in names], dim=1), patches))
    cls, patches = (torch.cat(part) for part in zip(*parts, strict=True))
    return Tokens(cls, patches), numbers


def _reads_patches(card: HeadCard) -> bool:
    """Tell whether a head reads single patch tokens, and not their mean."""
    return card.architecture == "attentive"


@torch.no_grad()
def _accuracy(network: nn.Module, tokens_at: TokensAt, indices: Sequence[int], labels: Tensor) -> float | None:
    """Return the accuracy in percent on images that can be read; None without any."""
    right: list[Tensor] = []
    for start in range(0, len(indices), _BLOCK):
        tokens, numbers = tokens_at(indices[start : start + _BLOCK])
        if numbers:
            right.append(network(tokens).argmax(dim=1) == labels[numbers])
    return 100 * float(torch.cat(right).double().mean()) if right else None
