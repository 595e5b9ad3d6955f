"""What to do with your images: a small study that tries each way on a few of them, with gain and cost as a table."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveal.engine.torch_engine import TorchEngine
from foveal.errors import BadImageError, FovealError
from foveal.evaluate.knn import right_of_each
from foveal.evaluate.results import measured_mean
from foveal.features.extract import Model, load
from foveal.features.labels import split_by_uri
from foveal.features.neighbours import top_k
from foveal.files import write_atomically
from foveal.images.imageset import ImageSet
from foveal.pretrain.data.views import ViewSettings, make_views
from foveal.pretrain.loop import Progress, pretrain
from foveal.pretrain.recipe import Recipe, build_recipe, load_recipe
from foveal.pretrain.start.weights import model_path, open_start

_HELD_OUT = 0.3
_MOST_TESTED = 1000  # held-out images of the score without labels
_K = 10

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One way to features.

    Attributes:
        way: its name.
        score: in percent.
        gain: over frozen features, in points.
        low: lower end of the gain's paired 95 % bootstrap interval over the held-out images.
        high: its upper end.
        minutes: that it took here.
        hours_on_all: that as many epochs on all images would take.
        note: how it ended, where the gate stopped it.
    """

    way: str
    score: float
    gain: float
    low: float
    high: float
    minutes: float
    hours_on_all: float
    note: str = ""

    @property
    def within_noise(self) -> bool:
        """Whether the held-out images are too few to tell this way from frozen features."""
        return self.low <= 0 <= self.high


def advise(
    source: str,
    *,
    model: str,
    out: Path,
    share: float = 0.02,
    least: int = 300,
    overrides: tuple[str, ...] = (),
    listener: Callable[[str, Progress], None] | None = None,
) -> tuple[list[Row], str]:
    """Try each way of getting features for the images of `source` on a small share of them.

    frozen: the model as it is. adapt, lora: the recipes of that name. distil: a student of half the depth learns the
    model's features. scratch: the model's network from random weights, by the settings of adapt without what protects
    the start. All train for the same steps on the same images, and are judged on others.

    With labels the score is the accuracy of kNN (k=10). Without, it is how often a crop finds the other crop of its
    image among those of all held-out images; since training asks for just that, it flatters whatever was trained on
    the images, and only says which of the trained ways is ahead. The interval of a gain is that of the held-out
    images; how much another seed of the training would change is not in it.

    Args:
        source: the images; with labels, if they have some.
        model: a run, model folder, checkpoint or known name.
        out: a folder for runs and table; the same call again continues.
        share: of the images that the study uses, above 0 and up to 1.
        least: images that it uses at least, if there are as many.
        overrides: key=value, for the runs of all ways.
        listener: called with the way and its progress.

    Returns:
        The rows, best score first, and what the score is.

    Raises:
        FovealError: a share out of range.
        ImageSetError: too few images to hold some out.
    """
    if not 0 < share <= 1:
        raise FovealError(f"share={share}; choose a share above 0 and up to 1, such as 0.02")
    images = ImageSet.open(source)
    count = min(len(images), max(least, round(share * len(images))))
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:count])
    train, test = split_by_uri(images.subset(chosen), share=_HELD_OUT)
    test = _of_known_classes(train, test)
    out.mkdir(parents=True, exist_ok=True)
    train.save(out / "train")
    start = open_start(model)
    frozen = _right(Model(TorchEngine(start.backbone), start.card), train, test)
    rows = [Row("frozen", 100 * frozen.mean(), 0.0, 0.0, 0.0, 0.0, 0.0)]
    for way, recipe in _recipes(model, train=str(out / "train"), out=out, overrides=overrides).items():
        began = time.perf_counter()
        outcome = pretrain(recipe, listener=partial(listener, way) if listener else None)
        minutes = (time.perf_counter() - began) / 60
        right = _right(load(outcome.run / "model", engine="torch"), train, test)
        gain = measured_mean("gain", 100 * (right - frozen), unit="points")
        hours = minutes / 60 * len(images) / len(train)
        note = outcome.judgements[-1].failed if outcome.judgements else ""
        said = note and f"stopped: {note}"
        rows.append(Row(way, 100 * right.mean(), gain.value, gain.low, gain.high, minutes, hours, said))
    rows.sort(key=lambda row: row.score, reverse=True)
    kind = f"kNN accuracy (k={_K})" if images.labels else "crops that find the other crop of their image"
    kind += f", {len(test)} held-out images, {len(train)} trained on, of {len(images)}"
    report = {"score": kind, "rows": [asdict(row) for row in rows]}
    write_atomically(out / "advice.json", json.dumps(report, indent=1) + "\n")
    return rows, kind


def _recipes(model: str, *, train: str, out: Path, overrides: tuple[str, ...]) -> dict[str, Recipe]:
    """Return the recipe of each way that trains."""

    def given(way: str) -> list[str]:
        return [f"start={model}", f"images={train}", f"out={out / way}", *overrides]

    adapt, lora = (load_recipe(name, given(way)) for way, name in (("adapt", "adapt"), ("lora", "adapt_lora")))
    plain: dict[str, Any] = {
        **adapt.model_dump(mode="json"),
        "start": None,
        "gate": None,
        "gram": None,
        "out": str(out / "scratch"),
    }
    plain["optimizer"] |= {"freeze_backbone_steps": 0, "backbone_lr_multiplier": 1.0, "layer_decay": 1.0}
    backbone = plain["backbone"] | {"variant": "custom", "depth": max(1, adapt.backbone.depth // 2)}
    student = {
        **{key: value for key, value in plain.items() if key not in ("heads", "objective", "masks", "teacher")},
        "backbone": backbone,
        "out": str(out / "distil"),
        "distill": {"teacher": str(model_path(model)) if Path(model).exists() else model, "objective": "features"},
        "views": plain["views"] | {"num_local": 0},
        "teacher": {key: plain["teacher"][key] for key in ("momentum_start", "momentum_end")},
    }
    return {
        "adapt": adapt,
        "lora": lora,
        "distil": build_recipe(student, where="the study's distillation"),
        "scratch": build_recipe(plain, where="the study's training from scratch"),
    }


def _of_known_classes(train: ImageSet, test: ImageSet) -> ImageSet:
    """Return the test images whose class the train images have too; of few images, not every class has both."""
    if not (train.labels and test.labels):
        return test
    known = set(train.labels)
    return test.subset([number for number, label in enumerate(test.labels) if label in known])


def _right(model: Model, train: ImageSet, test: ImageSet) -> np.ndarray:
    """Return (N,) of each held-out image whether the model gets it right, 1.0 or 0.0."""
    if train.labels and test.labels:
        return right_of_each(model, train, test, k=_K)
    return _crops_found(model, test.subset(np.arange(min(len(test), _MOST_TESTED))))


def _crops_found(model: Model, images: ImageSet) -> np.ndarray:
    """Return (N,) of each image whether the nearest of all second crops to its first is its own, 1.0 or 0.0."""
    settings = ViewSettings(global_size=model.card.crop_size, num_local=0)
    pairs = []
    for index in range(len(images)):
        try:
            pixels = images.decode(index, channels=model.card.backbone.channels)
        except BadImageError as error:
            logger.warning("left out: %s", error)
            continue
        pairs.append(make_views(pixels, settings=settings, seed=0, epoch=0, index=index).global_crops)
    first, second = (model.extract([pair[view] for pair in pairs], fit="resize").cls for view in (0, 1))
    _, nearest = top_k(first, second, k=1)
    return (nearest[:, 0] == torch.arange(len(first))).double().numpy()
