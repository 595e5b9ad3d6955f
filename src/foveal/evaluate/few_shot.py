"""Few-shot evaluation: a few train images of each class, drawn several times; mean and deviation over the draws."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foveal.errors import FovealError, ImageSetError
from foveal.evaluate.results import Measure, measured, measured_mean
from foveal.images.imageset import ImageSet

# By name of a measure, one value for each test image: 1.0 where it is right.
Right = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class FewShot:
    """How many train images of each class are drawn, and how often.

    Attributes:
        n_per_class: images of each class, without repeats.
        n_tries: draws.
    """

    n_per_class: int
    n_tries: int = 5

    def __post_init__(self) -> None:
        if self.n_per_class < 1 or self.n_tries < 1:
            raise FovealError(f"n_per_class={self.n_per_class}, n_tries={self.n_tries}; both must be at least 1")

    def check_choice(self) -> None:
        """Refuse one image of each class where some of those drawn choose a setting: their classes would be unknown."""
        if self.n_per_class < 2:
            raise FovealError(
                "n_per_class=1 leaves no image of a class to choose with; draw at least 2, or evaluate by kNN"
            )

    def check_classes(self, images: ImageSet) -> None:
        """Refuse, before any of its images is read, a labelled train set that has classes of fewer images."""
        counts = Counter(images.labels or [])
        if small := sorted(name for name, count in counts.items() if count < self.n_per_class):
            more = f" and {len(small) - 5} more" if len(small) > 5 else ""
            listed = ", ".join(f"{name} ({counts[name]})" for name in small[:5])
            raise ImageSetError(
                f"n_per_class={self.n_per_class}, and the train set has fewer images of {listed}{more}; choose at most "
                f"{min(counts.values())}, or leave these classes out of both sets"
            )

    def evaluate(self, labels: Tensor, right_of: Callable[[Tensor], Right], *, seed: int) -> list[Measure]:
        """Return mean and sample standard deviation over the draws of each measure, in percent.

        Args:
            labels: (N,) int64 class numbers of the train images.
            right_of: takes the numbers of the drawn train images, ascending, and returns what they lead to.
            seed: of the draws and of the intervals, which are over the test images.

        Raises:
            ImageSetError: a class has too few images.
        """
        drawn = [self._draw(labels, np.random.default_rng((seed, number))) for number in range(self.n_tries)]
        tries = [right_of(one) for one in drawn]
        found = []
        for name in tries[0]:
            values = 100 * np.stack([one[name] for one in tries])
            found += _over_tries(f"{name}, {self.n_per_class} per class", values, seed=seed)
        return found

    def _draw(self, labels: Tensor, generator: np.random.Generator) -> Tensor:
        chosen = []
        for number in labels.unique():
            members = (labels == number).nonzero().squeeze(1).numpy()
            if len(members) < self.n_per_class:
                raise ImageSetError(
                    f"class number {int(number)} (in the order of the names) has {len(members)} readable train "
                    f"images, n_per_class={self.n_per_class}; choose at most {len(members)}"
                )
            chosen.append(generator.choice(members, self.n_per_class, replace=False))
        return torch.from_numpy(np.sort(np.concatenate(chosen)))


def right_measures(right: Right, *, seed: int) -> list[Measure]:
    """Return the mean of each measure in percent, with its interval over the test images."""
    return [measured_mean(name, 100 * values, unit="%", seed=seed) for name, values in right.items()]


def right_of_answers(answers: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    """Return top-1 and, where there are 5 answers, top-5: of each image whether a label of it is among the first.

    Args:
        answers: (N, up to 5) integers, the most probable classes first.
        labels: (N,) int64, or (N, W), any of which is right; what is no class, such as -1, fills up.
    """
    hits = (answers[:, :, None] == labels.reshape(len(labels), 1, -1)).any(dim=2).double().numpy()
    found = {"top-1": hits[:, 0]}
    if hits.shape[1] == 5:
        found["top-5"] = hits.max(axis=1)
    return found


def _over_tries(name: str, values: np.ndarray, *, seed: int) -> list[Measure]:
    """Return mean and sample standard deviation over tries of values (tries, test images), the same images in each."""
    num_tries, num_images = values.shape

    def deviation(drawn: np.ndarray) -> float:
        return float(values[:, drawn].mean(axis=1).std(ddof=1)) if num_tries > 1 else 0.0

    return [
        measured_mean(f"{name}, mean of {num_tries}", values.mean(axis=0), unit="%", seed=seed),
        measured(f"{name}, deviation", deviation, num_images, unit="points", seed=seed),
    ]
