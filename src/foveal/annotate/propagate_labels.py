"""Labels of some images find those of all others, each with how likely it is right, and "unsure" where that is low.

Shapes: N images of the set, D width.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foveal.annotate.calibration import check_precision
from foveal.annotate.few_shot import FewShot, FewShotFit
from foveal.annotate.types import Annotation
from foveal.errors import FovealError


@dataclass(frozen=True)
class PropagatedLabels:
    """What labels say of the images without one.

    Attributes:
        annotations: one for each image without a label, in their order: its most probable class, "proposed" or
            "unsure", with the probability that it is right; None where no label was held out.
        fit: the head, the held-out answers and the calibration that they gave.
    """

    annotations: tuple[Annotation, ...]
    fit: FewShotFit

    @property
    def num_proposed(self) -> int:
        """How many labels are worth giving."""
        return sum(one.state == "proposed" for one in self.annotations)


def propagate_labels(
    features: np.ndarray,
    uris: Sequence[str],
    labels: Mapping[str, str],
    *,
    held_out: Collection[str] | None = None,
    precision: float = 0.9,
) -> PropagatedLabels:
    """Label all images of a set by those that have a label.

    A ridge regression on the features answers; each label is held out in turn, and the answers without it show from
    which score on the wanted precision is reached. What scores less is "unsure". That holds for images like the
    labelled ones: of the same classes, and labelled without regard to how hard they are.

    Args:
        features: (N, D) float, one row an image.
        uris: of the images (N).
        labels: class names by uri.
        held_out: labelled images that were drawn at random: only these measure. None is all.
        precision: wanted share of right labels among the proposed ones, above 0 and below 1.

    Raises:
        FovealError: labels of images that there are not, an image listed twice, fewer than two classes, or features of
            another shape or not finite.

    Example:
        >>> features, uris = np.eye(3, dtype=np.float32), ["a.jpg", "b.jpg", "c.jpg"]
        >>> found = propagate_labels(features, uris, {"a.jpg": "cat", "b.jpg": "dog"})
        >>> [(one.image, one.state) for one in found.annotations]
        [('c.jpg', 'unsure')]
    """
    check_precision(precision)
    if len(uris) != len(features):
        raise FovealError(f"{len(uris)} uris for {len(features)} rows of features; give one for each image")
    rows = {uri: row for row, uri in enumerate(uris)}
    if len(rows) < len(uris):
        raise FovealError(f"{len(uris) - len(rows)} images are listed twice; list each image once")
    if unknown := [uri for uri in labels if uri not in rows]:
        raise FovealError(
            f"{len(unknown)} labelled images have no features, first {unknown[0]}; uris of the set are like {uris[0]}"
        )
    measuring = None if held_out is None else [rows[uri] for uri in labels if uri in set(held_out)]
    fit = FewShot(features).fit({rows[uri]: name for uri, name in labels.items()}, drawn=measuring, precision=precision)
    known = bool(fit.held_out.any())
    annotations = tuple(
        Annotation(
            uri,
            fit.classes[answer],
            state=state,
            source="propagated",
            score=probability if known else None,
        )
        for uri, answer, state, probability in zip(
            uris, fit.answers.tolist(), fit.states, fit.probabilities.tolist(), strict=True
        )
        if uri not in labels
    )
    return PropagatedLabels(annotations, fit)
