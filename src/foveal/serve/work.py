"""What one batch computes: tokens, scores of a head, or the answer of a dense head for a whole picture.

Shapes: C channels, D width, R registers, H W pixels; grid_h x grid_w patches; K classes or maps.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from foveal.backbone.vit import Tokens
from foveal.errors import nearest
from foveal.serve.loaded import Loaded
from foveal.serve.problems import Problem
from foveal.tasks.classify import ClassPredictor
from foveal.tasks.predict import Predictor


class Encoded(NamedTuple):
    """The tokens of one image after the final norm, float32.

    Attributes:
        cls: (D,).
        registers: (R, D).
        patches: (grid_h, grid_w, D).
    """

    cls: np.ndarray
    registers: np.ndarray
    patches: np.ndarray


class Work(NamedTuple):
    """What images of one batch have in common.

    Attributes:
        loaded: the model that was served when they came.
        kind: "tokens" of prepared images, "scores" of a head on them (logits or maps), "classes" (their probabilities),
            or "answer" of a dense head for a whole picture.
        head: its name, or "".
        shape: of a prepared image (C, H, W); a picture stands alone, told from others by its number.
    """

    loaded: Loaded
    kind: Literal["tokens", "scores", "classes", "answer"]
    head: str
    shape: tuple[int, ...]


def compute(work: Work, items: Sequence[Any]) -> Sequence[Any]:
    """Run one batch and return an answer for each of its items."""
    if work.kind == "tokens":
        return _tokens(work, items)
    predictor = work.loaded.heads[work.head]
    if isinstance(predictor, ClassPredictor):
        found = predictor.of_arrays(items) if work.kind == "classes" else predictor.logits(items)
        return list(found.numpy())
    if work.kind == "scores":
        return list(predictor.scores(torch.from_numpy(np.stack(items))).numpy())
    return [predictor.predict(pixels, size=size) for pixels, size in items]


def _tokens(work: Work, items: Sequence[np.ndarray]) -> list[Encoded]:
    patch_size = work.loaded.model.card.backbone.patch_size
    grid = (work.shape[1] // patch_size, work.shape[2] // patch_size)
    found: Tokens = work.loaded.model.engine.encode(torch.from_numpy(np.stack(items)))
    cls, registers, patches = (part.cpu().numpy() for part in found)
    return [
        Encoded(cls[i], registers[i], patches[i].reshape(*grid, -1))  # views: the batch is short-lived
        for i in range(len(items))
    ]


def find_head(loaded: Loaded, name: str) -> ClassPredictor | Predictor:
    """Return a head by its name; Problem 404 names those that there are."""
    if name not in loaded.heads:
        names = ", ".join(loaded.heads) or "none: start with --head FOLDER"
        raise Problem(404, "head_not_found", f"no head of that name; heads: {names}{nearest(name, loaded.heads)}")
    return loaded.heads[name]
