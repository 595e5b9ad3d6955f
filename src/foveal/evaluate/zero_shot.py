"""Zero-shot classification: an image gets the class whose name fits it best (arXiv 2103.00020, section 3.1)."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.backbone.vit import Tokens
from foveal.engine.open_clip_tower import OpenClip
from foveal.errors import FovealError, ImageSetError
from foveal.evaluate.results import Measure, measured_mean
from foveal.features.batches import Progress, prepared_batches
from foveal.features.dinotxt import DinoText
from foveal.features.extract import Model
from foveal.features.tokens import Token
from foveal.images.imageset import ImageSet

TEMPLATE = "a photo of a {}."
_TOP = 5

EncodeTexts = Callable[[Sequence[str]], Tensor]
ImageVectors = Iterator[tuple[Tensor, Tensor]]


def run(
    vectors: ImageVectors,
    encode_texts: EncodeTexts,
    images: ImageSet,
    *,
    names: dict[str, str] | None = None,
    templates: Sequence[str] = (TEMPLATE,),
    seed: int = 0,
) -> list[Measure]:
    """Classify labelled images by the names of their classes.

    Args:
        vectors: indices (b,) into the set and unit vectors (b, E), batch by batch.
        encode_texts: gives unit vectors (T, E).
        images: the labelled set.
        names: what to call a class in a text, by its label; None takes the label, with spaces for underscores.
        templates: texts with {} for the name. A class's vector is the mean over them, of unit length.
        seed: of the intervals.

    Returns:
        Top-1 and, from 5 classes on, top-5 accuracy in percent.

    Raises:
        ImageSetError: the set has no labels.
        FovealError: a template without {}, or a class that `names` lacks.
    """
    if (labels := images.labels) is None:
        raise ImageSetError(f"{images.root} has images without a label; put each into a folder named after its class")
    classes = sorted(set(labels))
    of_class = class_vectors(_called(classes, names), encode_texts, templates=templates)
    number = {name: row for row, name in enumerate(classes)}
    right: list[Tensor] = []
    for indices, found in vectors:
        order = (found @ of_class.T).topk(min(_TOP, len(classes)), dim=1).indices
        truth = torch.tensor([number[labels[i]] for i in indices.tolist()])
        right.append(order == truth[:, None])
    hits = 100 * torch.cat(right).numpy().astype(np.float64)
    measures = [measured_mean("top-1", hits[:, 0], unit="%", seed=seed)]
    if len(classes) >= _TOP:
        measures.append(measured_mean("top-5", hits.sum(axis=1), unit="%", seed=seed))
    return measures


def class_vectors(names: Sequence[str], encode_texts: EncodeTexts, *, templates: Sequence[str]) -> Tensor:
    """Return unit vectors (C, E): the mean over templates of the unit vector of each text."""
    check_templates(templates)
    texts = [template.replace("{}", name) for name in names for template in templates]
    return F.normalize(encode_texts(texts).unflatten(0, (len(names), len(templates))).mean(dim=1), dim=1)


def check_templates(templates: Sequence[str]) -> None:
    """Raise FovealError where there is no template, or one without {}."""
    if missing := [template for template in templates or [""] if "{}" not in template]:
        raise FovealError(f"template {missing[0]!r} has no {{}} for the name of a class; add it")


def read_names(path: Path) -> dict[str, str]:
    """Read what classes are called: a label, a tab and a name on each line.

    Raises:
        FovealError: it cannot be read, or a line has another form.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise FovealError(f"{path} cannot be read ({error}); give a text file of labels and names") from None
    pairs = [line.split("\t") for line in lines]
    if wrong := [number for number, pair in enumerate(pairs, 1) if len(pair) != 2]:
        raise FovealError(f"{path}, line {wrong[0]}: give a label, a tab and the name of its class")
    return {label.strip(): name.strip() for label, name in pairs}


def vectors_of_dinotxt(
    model: Model, towers: DinoText, images: ImageSet, *, batch_size: int = 32, progress: Progress | None = None
) -> ImageVectors:
    """Yield the vectors of a set by dino.txt: the vision head on the model's class, register and patch tokens."""
    has_registers = model.card.backbone.num_registers > 0
    what: tuple[Token, ...] = ("cls", "registers", "patches") if has_registers else ("cls", "patches")
    for indices, found in model.stream_set(images, what=what, batch_size=batch_size, progress=progress):
        patches = found["patches"].flatten(1, 2)
        registers = found["registers"] if has_registers else patches[:, :0]
        yield indices, towers.encode_tokens(Tokens(found["cls"], registers, patches))


def vectors_of_open_clip(
    model: Model, towers: OpenClip, images: ImageSet, *, batch_size: int = 32, progress: Progress | None = None
) -> ImageVectors:
    """Yield the vectors of a set by a model of open_clip, whose images are cropped or, for SigLIP, made square."""
    side = model.card.crop_size
    preprocess = model.preprocessing(size=(side, side), fit="resize") if towers.squashes else model.preprocessing()
    for indices, arrays in prepared_batches(images, preprocess, batch_size=batch_size, progress=progress):
        yield indices, towers.encode_images(torch.from_numpy(np.stack(arrays)))


def _called(classes: Sequence[str], names: dict[str, str] | None) -> list[str]:
    if names is None:
        return [label.replace("_", " ") for label in classes]
    if missing := [label for label in classes if label not in names]:
        raise FovealError(f"no name for {len(missing)} of {len(classes)} classes, first {missing[0]}; add a line each")
    return [names[label] for label in classes]
