"""Training a grid of linear classifiers on a frozen backbone, on new views in every step; resumable to the bit.

Shapes: N images, B images of a step, C channels, H W pixels, K classes, M classifiers in all.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from foveal.engine.memory import freed_memory_kept
from foveal.errors import FovealError
from foveal.evaluate.linear_grid import (
    BATCH_SIZE,
    LEARNING_RATES,
    Classifiers,
    Inputs,
    check_grid,
    cosine_share,
    inputs_of,
    layers_of,
)
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.features.random_views import RandomViews
from foveal.features.store import ENGINE
from foveal.features.tokens import Token, encode_arrays
from foveal.images.imageset import ImageSet
from foveal.signals import caught_signals, pass_on
from foveal.tasks.saved_state import load_state, save_state

NUM_STEPS = 12_500
SAVE_EVERY_S = 60.0
_TOKENS: tuple[Token, ...] = ("cls", "mean")


@dataclass(frozen=True)
class LinearSettings:
    """How the classifiers are trained; the defaults are the published ones.

    Attributes:
        num_steps: of SGD with momentum 0.9, no weight decay, learning rates along a half cosine to 0.
        batch_size: images a step.
        learning_rates: for 256 images a step.
        seed: of the initial weights, the order of the images, their views, and the intervals.
    """

    num_steps: int = NUM_STEPS
    batch_size: int = BATCH_SIZE
    learning_rates: tuple[float, ...] = LEARNING_RATES
    seed: int = 0

    def __post_init__(self) -> None:
        check_grid(self.num_steps, self.learning_rates)
        if self.batch_size < 1:
            raise FovealError(f"batch_size={self.batch_size}; it must be at least 1")

    @property
    def protocol(self) -> str:
        """The name of the protocol; other numbers of steps or images are no match for published figures."""
        if (self.num_steps, self.batch_size, self.learning_rates) == (NUM_STEPS, BATCH_SIZE, LEARNING_RATES):
            return "linear"
        return f"linear, {self.num_steps} steps of {self.batch_size}"


class Answers(NamedTuple):
    """What all classifiers say of the readable images of a set.

    Attributes:
        classes: (M, n, up to 5) int32, the most probable first.
        indices: (n,) int64 into the set.
    """

    classes: Tensor
    indices: Tensor


class Grid:
    """All classifiers, on one model.

    Args:
        model: whose engine is settled.
        num_classes: K.
        settings: of the training.
    """

    def __init__(self, model: Model, *, num_classes: int, settings: LinearSettings) -> None:
        self.model, self.layers = model, layers_of(model.card.backbone.depth)
        self._device = torch.device(model.engine.description["device"])
        generator = torch.Generator().manual_seed(settings.seed)
        width = model.card.backbone.width
        like = {name: torch.empty(0, width) for token in _TOKENS for name in self._names(token)}
        self.parts = {
            inputs: Classifiers(
                empty.shape[1],
                num_classes,
                learning_rates=settings.learning_rates,
                batch_size=settings.batch_size,
                generator=generator,
                device=self._device,
            )
            for inputs, empty in inputs_of(like, self.layers).items()
        }
        self.members = [(rate, inputs) for inputs in self.parts for rate in settings.learning_rates]

    def _names(self, token: str) -> list[str]:
        return [f"{token}.layer{layer}" for layer in self.layers]

    def _inputs(self, arrays: dict[str, Tensor]) -> dict[Inputs, Tensor]:
        return {inputs: values.to(self._device) for inputs, values in inputs_of(arrays, self.layers).items()}

    def update(self, views: Sequence[np.ndarray], labels: Tensor, *, share: float) -> None:
        """Take one step on views (C, H, W) and their labels (B,), at this share of the learning rates."""
        patch_size = self.model.card.backbone.patch_size
        arrays = encode_arrays(self.model.engine, views, tokens=_TOKENS, layers=self.layers, patch_size=patch_size)
        for inputs, values in self._inputs(arrays).items():
            self.parts[inputs].update(values, labels.to(self._device), share=share)

    def answer(
        self, images: ImageSet, *, batch_size: int, only: Tensor | None = None, progress: Progress | None = None
    ) -> Answers:
        """Return the first answers of each classifier to what can be read of a set; nothing else is kept of a batch.

        Args:
            images: the set, seen as the card has it: resized, the centre cut out.
            batch_size: images at a time.
            only: class numbers that may be answered; None is all.
            progress: called with (images done, images in all).
        """
        parts, indices = [], []
        for numbers, arrays in self.model.stream_set(
            images, what=_TOKENS, layers=self.layers, batch_size=batch_size, progress=progress
        ):
            found = [_first(self.parts[inputs].logits(values), only) for inputs, values in self._inputs(arrays).items()]
            parts.append(torch.cat(found).int().cpu())
            indices.append(numbers)
        return Answers(torch.cat(parts, dim=1), torch.cat(indices))


def _first(logits: Tensor, only: Tensor | None) -> Tensor:
    """Return the up to 5 most probable classes (R, B, up to 5) of logits (R, B, K)."""
    if only is None:
        return logits.topk(min(5, logits.shape[2]), dim=2).indices
    only = only.to(logits.device)
    return only[logits[:, :, only].topk(min(5, len(only)), dim=2).indices]


class SavedGrid:
    """The file from which training goes on; it belongs to one model, train set and settings.

    Args:
        folder: that holds it; made where it is missing.
        grid: what is saved and restored.
        train: the train set.
        settings: of the training.
    """

    def __init__(self, folder: Path, grid: Grid, train: ImageSet, settings: LinearSettings) -> None:
        self._path, self._grid = folder / "classifiers.safetensors", grid
        what = [grid.model.identity, grid.model.engine.description, train.hash, asdict(settings)]
        self._stamp = sha256(json.dumps(what).encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f"{inputs.num_blocks}.{int(inputs.avgpool)}.{name}": values
            for inputs, part in self._grid.parts.items()
            for name, values in part.state().items()
        }

    def save(self, num_done: int) -> None:
        """Save the grid after so many steps."""
        save_state(self._path, self._tensors(), stamp=self._stamp, step=num_done)

    def restore(self) -> int:
        """Restore the grid, if it was saved, and return the steps that it has done.

        Raises:
            FovealError: the file belongs to another training.
        """
        if (saved := load_state(self._path, stamp=self._stamp, work="training")) is None:
            return 0
        for name, values in self._tensors().items():
            values.copy_(saved.tensors[name])
        return int(saved.words["step"])


def train_grid(
    model: Model,
    images: ImageSet,
    labels: Tensor,
    *,
    num_classes: int,
    settings: LinearSettings,
    num_threads: int | None = None,
    folder: Path | None = None,
    save_every_s: float = SAVE_EVERY_S,
    trained: Progress | None = None,
) -> Grid:
    """Train the grid.

    A state is saved every `save_every_s` seconds, at the end, and after the step in which Ctrl-C or SIGTERM comes.

    Args:
        model: a loaded model.
        images: to learn from.
        labels: (N,) int64 class numbers of them.
        num_classes: K.
        settings: see there.
        num_threads: that decode; None is as many as PyTorch computes with, 2 at least.
        folder: where training is saved, and from where it goes on, equal to the bit; made where it is missing.
        save_every_s: seconds between two states.
        trained: called with (steps done, steps in all).

    Raises:
        FovealError: a folder of other settings, or one that cannot be written.
    """
    layers = layers_of(model.card.backbone.depth)
    model = model.settle(images, layers=layers, folder=None if folder is None else folder / ENGINE)
    views = RandomViews(
        images,
        model.preprocessing(),
        batch_size=settings.batch_size,
        seed=settings.seed,
        num_threads=num_threads or max(2, torch.get_num_threads()),
    )
    grid = Grid(model, num_classes=num_classes, settings=settings)
    saved = None if folder is None else SavedGrid(folder, grid, images, settings)
    first = 0 if saved is None else saved.restore()
    last_saved = time.monotonic()
    with caught_signals() as caught, freed_memory_kept():
        for step, (indices, arrays) in enumerate(views.batches(range(first, settings.num_steps)), start=first):
            if arrays:
                grid.update(arrays, labels[indices], share=cosine_share(step, settings.num_steps))
            stop = bool(caught)  # what comes after this look waits for the next step
            is_last = stop or step + 1 == settings.num_steps
            if saved is not None and (is_last or time.monotonic() - last_saved >= save_every_s):
                saved.save(step + 1)
                last_saved = time.monotonic()
            if trained is not None:
                trained(step + 1, settings.num_steps)
            if stop:
                break
    pass_on(caught)
    return grid
