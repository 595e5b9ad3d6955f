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
from foveal.serve.one_run import AnyPredictor, run_once
from foveal.serve.problems import Problem
from foveal.tasks.classify import ClassPredictor


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
        kind: "tokens" of prepared images, "scores" of a head on them (logits or maps), "both" tokens and the scores of
            heads that share a run, "classes" (probabilities), or "answer" of a dense head for a whole picture.
        head: its name, or ""; of "both" names separated by commas.
        shape: of a prepared image (C, H, W); a picture stands alone, told from others by its number.
    """

    loaded: Loaded
    kind: Literal["tokens", "scores", "both", "classes", "answer"]
    head: str
    shape: tuple[int, ...]


def compute(work: Work, items: Sequence[Any]) -> Sequence[Any]:
    """Run one batch and return an answer for each of its items."""
    if work.kind == "tokens":
        return _encoded(work, work.loaded.model.engine.encode(torch.from_numpy(np.stack(items))))
    if work.kind == "both":
        return _both(work, items)
    predictor = work.loaded.heads[work.head]
    if work.kind == "scores":
        return _scores(predictor, items)
    if isinstance(predictor, ClassPredictor):
        return list(predictor.of_arrays(items).numpy())
    return [predictor.predict(pixels, size=size) for pixels, size in items]


def _scores(predictor: AnyPredictor, items: Sequence[np.ndarray]) -> list[np.ndarray]:
    if isinstance(predictor, ClassPredictor):
        return list(predictor.logits(items).numpy())
    return list(predictor.scores(torch.from_numpy(np.stack(items))).numpy())


def _both(work: Work, items: Sequence[np.ndarray]) -> list[tuple[Encoded, dict[str, np.ndarray]]]:
    heads = {name: work.loaded.heads[name] for name in work.head.split(",")}
    tokens, heads = run_once(work.loaded.model, heads, torch.from_numpy(np.stack(items)))
    scores = {name: _scores(head, items) for name, head in heads.items()}
    encoded = _encoded(work, tokens)
    return [(encoded[i], {name: found[i] for name, found in scores.items()}) for i in range(len(items))]


def _encoded(work: Work, found: Tokens) -> list[Encoded]:
    patch_size = work.loaded.model.card.backbone.patch_size
    grid = (work.shape[1] // patch_size, work.shape[2] // patch_size)
    cls, registers, patches = (part.cpu().numpy() for part in found)
    return [
        Encoded(cls[i], registers[i], patches[i].reshape(*grid, -1))  # views: the batch is short-lived
        for i in range(len(cls))
    ]


def find_head(loaded: Loaded, name: str) -> AnyPredictor:
    """Return a head by its name; Problem 404 names those that there are."""
    if name not in loaded.heads:
        names = ", ".join(loaded.heads) or "none: start with --head FOLDER"
        raise Problem(404, "head_not_found", f"no head of that name; heads: {names}{nearest(name, loaded.heads)}")
    return loaded.heads[name]
