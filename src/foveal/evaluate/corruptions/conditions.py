"""The pictures of a robustness evaluation: a test set under corruptions, or corrupted pictures as distributed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from foveal.errors import FovealError, ImageSetError
from foveal.evaluate.corruptions.corrupt import CORRUPTIONS, SEVERITIES, SIZE, check_corruption, corrupt, generator_of
from foveal.images.decode import DEFAULT_LIMITS, DecodeLimits
from foveal.images.imageset import ImageSet
from foveal.images.preprocess import center_crop, resize, short_side_shape

_GROUPS = ("", "noise", "blur", "weather", "digital")  # folders of the public archives, where they are kept


class Condition(NamedTuple):
    """A corruption and its severity."""

    corruption: str
    severity: int


@dataclass(frozen=True)
class Corrupted:
    """Labelled pictures under some conditions, the same pictures in the same order under each.

    Attributes:
        sets: by condition.
        seed: of generated pictures; None for files of others, of whatever make.
    """

    sets: Mapping[Condition, ImageSet]
    seed: int | None = None

    @property
    def generated(self) -> bool:
        """Whether the pictures are made here: they are then cut already, and a model sees them whole."""
        return self.seed is not None

    @property
    def hash(self) -> str:
        """Of the conditions, their sets and the seed."""
        lines = [
            f"{condition.corruption} {condition.severity} {images.hash}" for condition, images in self.sets.items()
        ]
        return hashlib.sha256("\n".join([*lines, f"seed {self.seed}"]).encode()).hexdigest()

    @property
    def complete(self) -> bool:
        """Whether all corruptions are there at all severities."""
        return set(self.sets) == set(all_conditions())


class _Generated(ImageSet):
    """A set whose pictures are cut to 224 x 224 and corrupted when they are decoded."""

    def __init__(self, images: ImageSet, condition: Condition, *, short_side: int, seed: int) -> None:
        super().__init__(images.rows, root=images.root)
        self._condition, self._short_side, self._seed = condition, short_side, seed

    def decode(
        self,
        index: int,
        *,
        channels: int = 3,
        limits: DecodeLimits = DEFAULT_LIMITS,
        min_short_side: int | None = None,
    ) -> np.ndarray:
        """Return one corrupted picture (224, 224, 3) uint8; see `ImageSet.decode`."""
        pixels = super().decode(index, channels=channels, limits=limits, min_short_side=min_short_side)
        height, width = short_side_shape(*pixels.shape[:2], size=self._short_side)
        pixels = center_crop(resize(pixels, height=height, width=width), size=SIZE)
        generator = generator_of(self.uri(index), *self._condition, seed=self._seed)
        return corrupt(pixels, *self._condition, generator)


def all_conditions(
    corruptions: Sequence[str] = tuple(CORRUPTIONS), severities: Sequence[int] = SEVERITIES
) -> list[Condition]:
    """Return every corruption at every severity; FovealError for one that does not exist or is named twice."""
    for name in corruptions:
        for severity in severities:
            check_corruption(name, severity)
    found = [Condition(name, severity) for name in corruptions for severity in severities]
    if not found or len(set(found)) < len(found):
        names, numbers = ", ".join(corruptions) or "none", ", ".join(map(str, severities)) or "none"
        raise FovealError(f"corruptions {names} at severities {numbers}; give at least one of each, each once")
    return found


def generate(images: ImageSet, conditions: Sequence[Condition], *, margin: float, seed: int = 0) -> Corrupted:
    """Return a set under corruptions that are drawn when a picture is read.

    A picture is resized to a short side of 224 times `margin`, its centre of 224 x 224 is cut out and corrupted: the
    same pictures for every model, whatever size it then takes.

    Args:
        images: labelled RGB pictures.
        conditions: what to do to them.
        margin: resize size over crop size of the model's own evaluation.
        seed: of whatever is drawn, together with the condition and the uri of a picture.
    """
    short_side = round(SIZE * margin)
    sets = {one: _Generated(images, one, short_side=short_side, seed=seed) for one in conditions}
    return Corrupted(sets, seed)


def open_corrupted(folder: str | Path, conditions: Sequence[Condition]) -> Corrupted:
    """Open corrupted pictures as ImageNet-C is distributed: CORRUPTION/SEVERITY/CLASS/name, or below noise/ and so on.

    Raises:
        ImageSetError: a condition without a folder, or a picture that another condition has and one lacks; the message
            names the first.
    """
    folder = Path(folder)
    sets = {}
    for condition in conditions:
        name, severity = condition.corruption, str(condition.severity)
        places = [folder / group / name / severity for group in _GROUPS]
        if (found := next((place for place in places if place.is_dir()), None)) is None:
            raise ImageSetError(
                f"{folder} has no {name}/{severity}, nor below noise, blur, weather or digital; give the folder that "
                "holds CORRUPTION/SEVERITY/CLASS/name.jpg, or choose the corruptions and severities that are there"
            )
        sets[condition] = ImageSet.open(found)
    _check_same(sets)
    return Corrupted(sets)


def _check_same(sets: Mapping[Condition, ImageSet]) -> None:
    (first, images), *others = sets.items()
    wanted = images.rows.column("uri").to_pylist()
    for condition, other in others:
        if (seen := other.rows.column("uri").to_pylist()) != wanted:
            differing = sorted(set(wanted) ^ set(seen))
            raise ImageSetError(
                f"{first.corruption} {first.severity} and {condition.corruption} {condition.severity} hold different "
                f"pictures: {len(differing)} are in one of them alone, first {differing[0]}; extract the archives again"
            )
