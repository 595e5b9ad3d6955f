"""A few masked pictures find the same thing in others, each answer with how likely it is right.

A linear head on patches is fitted to the examples in closed form; its belief about the patches of another picture is
sharpened to that picture's edges. How far to trust an answer is learnt from examples that are held out: where they are
too few to know, or answers like it are too often wrong, it is "unsure", and a person decides. A corrected picture is an
example like any other: give it with the next call.

Shapes: H W pixels of the original picture.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from torch import Tensor

from foveal.annotate.calibration import Calibration, calibrate, check_precision
from foveal.annotate.cells import Cells, Sharpness
from foveal.annotate.patch_head import Example, Moments, PatchHead, best_threshold, coverage, fit, moments
from foveal.annotate.types import Annotation, Mask, State
from foveal.errors import FovealError
from foveal.evaluate.video_metrics import region_similarity
from foveal.features.seen import SeenImage

_MAX_FOLDS = 10
_SOFTNESS = 0.25  # of the spread of scores, over which a belief changes


@dataclass(frozen=True)
class Trust:
    """When a mask counts as right, and how often that must be.

    Attributes:
        min_iou: intersection over union with the truth from which a mask is right, 0 to 1.
        precision: share of right masks that those which are proposed must reach; see `calibrate`.
    """

    min_iou: float = 0.5
    precision: float = 0.8

    def __post_init__(self) -> None:
        """Refuse what cannot be wanted."""
        check_precision(self.precision)
        if not 0 < self.min_iou <= 1:
            raise FovealError(f"min_iou={self.min_iou:g}; choose a share above 0, at most 1, such as 0.5")


class Answer(NamedTuple):
    """What was found in a picture.

    Attributes:
        mask: (H, W) bool, not empty.
        score: how well the mask agrees with the beliefs that made it, 0 to 1: the IoU that they expect.
    """

    mask: np.ndarray
    score: float


class MaskPropagator:
    """What a few masked pictures teach about one thing.

    Args:
        examples: pictures with their masks, seen by one model. Some may be empty, where the thing is not shown.
        sharpness: how masks follow edges.
        trust: when they are proposed.

    Attributes:
        head: fitted to all examples.
        calibration: what the held-out examples say about scores; its `summary` is a line to show.

    Raises:
        FovealError: no example, none with a mask, masks of another size than their pictures, or other models.
    """

    def __init__(
        self, examples: Sequence[Example], *, sharpness: Sharpness | None = None, trust: Trust | None = None
    ) -> None:
        self._sharpness, self._trust = sharpness or Sharpness(), trust or Trust()
        _check(examples)
        folds = [examples[start::_MAX_FOLDS] for start in range(min(_MAX_FOLDS, len(examples)))]
        gathered = [_gathered(fold) for fold in folds]
        whole = fit(_sum(gathered))
        held_out: list[tuple[PatchHead, Example]] = []
        for number, fold in enumerate(folds):
            others = [part for other, part in enumerate(gathered) if other != number]
            if others and _sum(others).counts.min() >= 1:
                head = fit(_sum(others))
                held_out += [(head, example) for example in fold]
        threshold, scale = _cut(held_out or [(whole, example) for example in examples])
        self.head = replace(whole, threshold=threshold, scale=scale)
        judged = [self._judged(replace(head, threshold=threshold, scale=scale), example) for head, example in held_out]
        scores, right = zip(*(pair for pair in judged if pair is not None), strict=True) if any(judged) else ((), ())
        self.calibration: Calibration = calibrate(
            np.array(scores), np.array(right, bool), precision=self._trust.precision
        )

    def answer(self, seen: SeenImage) -> Answer | None:
        """Return the mask of the thing in another picture, or None where nothing is found."""
        if seen.patches.shape[2] != len(self.head.weights):
            raise FovealError(
                f"{seen.name or 'a picture'} has features of width {seen.patches.shape[2]}, the examples of "
                f"{len(self.head.weights)}; see all pictures with one model"
            )
        return _answer(self.head, seen, self._sharpness)

    def trusted(self, answer: Answer) -> tuple[State, float | None]:
        """Return "proposed" or "unsure", and the probability that the mask is right; None where nothing is known."""
        scores = np.array([answer.score])
        known = self.calibration.num_held_out > 0
        probability = float(self.calibration.probabilities(scores)[0]) if known else None
        return self.calibration.states(scores)[0], probability

    def _judged(self, head: PatchHead, example: Example) -> tuple[float, bool] | None:
        found = _answer(head, example.seen, self._sharpness)
        if found is None:
            return None
        return found.score, region_similarity(found.mask, example.mask) >= self._trust.min_iou


def propagate_masks(
    examples: Sequence[Example],
    targets: Iterable[tuple[str, SeenImage]],
    *,
    class_name: str,
    sharpness: Sharpness | None = None,
    trust: Trust | None = None,
) -> Iterator[Annotation | None]:
    """Yield what is found in other pictures, one by one, in their order.

    Args:
        examples: pictures with the masks of one class.
        targets: uri and picture, seen by the model of the examples; read one at a time.
        class_name: of the masks.
        sharpness: how masks follow edges.
        trust: when a mask is proposed; the others are "unsure".

    Yields:
        A mask with its state and its probability of being right, or None where nothing is found.

    Raises:
        FovealError: see `MaskPropagator`.

    Example:
        >>> examples = [Example(see(model, "a.jpg", size=448), mask)]  # doctest: +SKIP
        >>> targets = ((name, see(model, name, size=448)) for name in ("b.jpg", "c.jpg"))  # doctest: +SKIP
        >>> found = list(propagate_masks(examples, targets, class_name="cat"))  # doctest: +SKIP
    """
    propagator = MaskPropagator(examples, sharpness=sharpness, trust=trust)
    for uri, seen in targets:
        answer = propagator.answer(seen)
        if answer is None:
            yield None
            continue
        state, probability = propagator.trusted(answer)
        mask = Mask.of(answer.mask)
        yield Annotation(uri, class_name, mask=mask, state=state, source="propagated", score=probability)


def _answer(head: PatchHead, seen: SeenImage, sharpness: Sharpness) -> Answer | None:
    cells = Cells(seen, sharpness)
    likely = cells.to_original(cells.settled(cells.of_patches(head.belief(seen.patches))))
    mask = likely > 0.5
    if not mask.any():
        return None
    inside = float(likely[mask].sum())
    return Answer(mask, inside / (np.count_nonzero(mask) + float(likely[~mask].sum())))


def _cut(answers: Sequence[tuple[PatchHead, Example]]) -> tuple[float, float]:
    """Return threshold and scale of scores, from heads and pictures, best from such as they were not fitted to."""
    scores = [head.score(example.seen.patches).numpy() for head, example in answers]
    shares = [coverage(example.mask, example.seen.geometry) for _, example in answers]
    spread = float(np.concatenate([score.ravel() for score in scores]).std())
    return best_threshold(scores, shares), max(_SOFTNESS * spread, 1e-6)


def _gathered(examples: Sequence[Example]) -> Moments:
    return _sum([moments(example) for example in examples])


def _sum(parts: Sequence[Moments]) -> Moments:
    def added(name: str) -> Tensor:
        first, *others = (getattr(part, name) for part in parts)
        total: Tensor = first
        for other in others:
            total = total + other
        return total

    return Moments(*(added(name) for name in Moments._fields))


def _check(examples: Sequence[Example]) -> None:
    if not examples:
        raise FovealError("no example; give at least one picture with its mask")
    widths = {example.seen.patches.shape[2] for example in examples}
    if len(widths) > 1:
        raise FovealError(
            f"examples have features of width {', '.join(map(str, sorted(widths)))}; see all with one model"
        )
    if not any(example.mask.any() for example in examples):
        raise FovealError("the masks of all examples are empty; give at least one that is not")
