"""Logistic regression on frozen features: the published protocol, with the strength of the penalty chosen on train."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveal.evaluate.few_shot import FewShot, right_measures, right_of_answers
from foveal.evaluate.held_out import check_choosable, split_tenth
from foveal.evaluate.labelled import Labelled, extract_labelled
from foveal.evaluate.results import Measure
from foveal.evaluate.softmax_regression import Fit, fit_path
from foveal.evaluate.sweep_state import Sweep, SweepFile
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.images.imageset import ImageSet

CS = tuple((10.0 ** np.linspace(-6, 5, 45)).tolist())


def run(
    model: Model,
    train: ImageSet,
    test: ImageSet,
    *,
    cs: Sequence[float] = CS,
    few_shot: FewShot | None = None,
    seed: int = 0,
    batch_size: int = 32,
    folder: Path | None = None,
    progress: Progress | None = None,
    fitted: Callable[[Fit, float], None] | None = None,
) -> list[Measure]:
    """Evaluate a model by logistic regression on the class token after the final norm, not normalised.

    The short side of an image is resized to the card's crop size, as published: only the long side is cut.

    Args:
        model: a loaded model.
        train: labelled images; a tenth of them, drawn with seed 0 as published, chooses C, all are then fitted.
        test: labelled images that are classified.
        cs: inverse strengths of the penalty to choose from.
        few_shot: a few train images of each class, several times, instead of all; a tenth of each draw chooses C.
        seed: of the intervals and of the few-shot draws.
        batch_size: images at a time.
        folder: see `extract_labelled`; the sweep of C goes on from there too.
        progress: called with (images done, images in all), first for train, then for test.
        fitted: called with each fit of the choice and its accuracy in percent on the tenth.

    Returns:
        Top-1 and, from 5 classes on, top-5 accuracy in percent, and the chosen C; for few-shot the mean of each
        accuracy over the tries and its sample standard deviation.

    Raises:
        ImageSetError: labels missing or not matching, or images in both sets.
        FovealError: too few images or classes.

    Source: arXiv 2304.07193, section 7.1 (the 12 small data sets).
    """
    check_choosable(train, few_shot)
    uncropped = Model(model.engine, model.card.model_copy(update={"resize_size": model.card.crop_size}))
    found = extract_labelled(uncropped, train, test, batch_size=batch_size, folder=folder, progress=progress)
    state = None if folder is None else folder / "sweep.safetensors"
    return score(found[0].cls, found[1].cls, cs=cs, few_shot=few_shot, seed=seed, fitted=fitted, state=state)


def score(
    train: Labelled,
    test: Labelled,
    *,
    cs: Sequence[float] = CS,
    few_shot: FewShot | None = None,
    seed: int = 0,
    fitted: Callable[[Fit, float], None] | None = None,
    state: Path | None = None,
) -> list[Measure]:
    """Evaluate features that are already extracted; arguments and result as for `run`, `state` as for `choose`.

    The short sweeps of few-shot draws are not saved.
    """
    if few_shot is not None:
        few_shot.check_choice()

        def right_of(drawn: Tensor) -> dict[str, np.ndarray]:
            part = Labelled(train.features[drawn], train.labels[drawn])
            return _right(fit_all(part, choose(part, cs=cs, fitted=fitted)), test)

        return few_shot.evaluate(train.labels, right_of, seed=seed)
    fit = fit_all(train, choose(train, cs=cs, fitted=fitted, state=state))
    return [*right_measures(_right(fit, test), seed=seed), Measure("C", fit.c, "", fit.c, fit.c)]


def _right(fit: Fit, test: Labelled) -> dict[str, np.ndarray]:
    """Return by name, for each test image, whether it is right: 1.0 or 0.0."""
    best = fit.scores(test.features).topk(min(5, len(fit.classes)), dim=1).indices
    return right_of_answers(fit.classes.to(test.labels)[best], test.labels)


def choose(
    train: Labelled,
    *,
    cs: Sequence[float] = CS,
    fitted: Callable[[Fit, float], None] | None = None,
    state: Path | None = None,
) -> Fit:
    """Return the fit to nine tenths of the train samples that is best on the last; of equal ones the one of least C.

    Args:
        train: features and labels.
        cs: to choose from.
        fitted: called with each fit and its accuracy in percent.
        state: file into which each fit is saved, and from which an interrupted sweep goes on, equal to the bit.
    """
    held_out, kept = split_tenth(len(train.labels), seed=0)
    cs = sorted(cs)
    file = None if state is None else SweepFile(state, *train, cs)
    sweep = Sweep() if file is None else file.load()
    rest = cs[sweep.num_done :]
    fits = fit_path(train.features[kept], train.labels[kept], rest, start=sweep.last) if rest or not cs else ()
    for fit in fits:
        accuracy = 100 * float((fit.predict(train.features[held_out]) == train.labels[held_out]).double().mean())
        is_best = accuracy > sweep.accuracy
        sweep = Sweep(sweep.num_done + 1, fit, fit if is_best else sweep.best, accuracy if is_best else sweep.accuracy)
        if file is not None:
            file.save(sweep)
        if fitted is not None:
            fitted(fit, accuracy)
    assert sweep.best is not None  # cs is not empty, and no accuracy is below 0
    return sweep.best


def fit_all(train: Labelled, chosen: Fit) -> Fit:
    """Return the fit to all train samples with the C of `chosen`, from where that stands if it knows all classes."""
    start = chosen if torch.equal(chosen.classes, train.labels.unique()) else None
    return next(fit_path(train.features, train.labels, [chosen.c], start=start))
