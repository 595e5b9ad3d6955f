"""Masks of some pictures of an image set, carried to all others of it, or frame by frame along a video."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from foveal.annotate.calibration import Calibration
from foveal.annotate.given import Given
from foveal.annotate.patch_head import Example
from foveal.annotate.propagate_masks import MaskPropagator, Trust
from foveal.annotate.track import follow
from foveal.annotate.types import Annotation, Mask
from foveal.errors import BadImageError, FovealError
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.features.seen import SeenImage, see
from foveal.images.imageset import ImageSet

_MOST_EXAMPLES = 200  # of a class: more fill the memory and teach little
_MOST_OBJECTS = 254


@dataclass(frozen=True)
class PropagatedMasks:
    """What masks of some pictures say of the others.

    Attributes:
        annotations: masks, "proposed" or "unsure", picture by picture.
        calibrations: what the held-out examples of each class say; none for a video.
        num_looked: pictures that were looked at.
        unreadable: uris of those that could not be read.
    """

    annotations: tuple[Annotation, ...]
    calibrations: dict[str, Calibration]
    num_looked: int
    unreadable: tuple[str, ...]

    @property
    def num_proposed(self) -> int:
        """How many masks are worth giving."""
        return sum(one.state == "proposed" for one in self.annotations)


def propagate_over_set(
    model: Model,
    images: ImageSet,
    given: Given,
    *,
    size: int | None = None,
    trust: Trust = Trust(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> PropagatedMasks:
    """Look for what is masked in some pictures in all others of a set.

    Args:
        model: sees the pictures.
        images: the set.
        given: masks; see `foveal.annotate.given.read_given`.
        size: short side at which pictures are seen, pixels; None is the model's. Larger is finer and slower.
        trust: when a mask is proposed.
        progress: called with (pictures done, pictures in all).

    Raises:
        FovealError: a picture with a mask that cannot be read, or that has another size than its mask.
    """
    rows = {uri: row for row, uri in enumerate(images.rows.column("uri").to_pylist())}
    propagators = {
        name: MaskPropagator(_examples(model, images, given, name, rows, size), trust=trust)
        for name in given.annotated.classes
    }
    done = given.complete | {one.image for one in given.annotated.annotations}
    targets = [row for uri, row in rows.items() if uri not in done]
    found: list[Annotation] = []
    unreadable: list[str] = []
    for number, row in enumerate(targets, 1):
        try:
            seen = _seen(model, images, row, size)
        except BadImageError:
            unreadable.append(images.uri(row))
        else:
            found += _answers(propagators, seen, images.uri(row))
        if progress:
            progress(number, len(targets))
    calibrations = {name: propagator.calibration for name, propagator in propagators.items()}
    return PropagatedMasks(tuple(found), calibrations, len(targets), tuple(unreadable))


def propagate_along_video(
    model: Model, images: ImageSet, given: Given, *, size: int | None = None, progress: Progress | None = None
) -> PropagatedMasks:
    """Follow what is masked in some frames through all later ones; the set's images are the frames, in its order.

    Masks of a class with a track are one object, those without one are another. No frame is held out, so every mask
    is "unsure" until a person has looked.

    Args:
        model: sees the frames.
        images: the frames.
        given: masks of the first frame and of any other.
        size: see `propagate_over_set`.
        progress: called with (frames done, frames in all).

    Raises:
        FovealError: a frame that cannot be read, a mask of another size, or more than 254 objects.
    """
    rows = {uri: row for row, uri in enumerate(images.rows.column("uri").to_pylist())}
    objects = list(dict.fromkeys((one.class_name, one.track) for one in given.annotated.annotations))
    if len(objects) > _MOST_OBJECTS:
        raise FovealError(f"{len(objects)} objects are masked; at most {_MOST_OBJECTS} are followed: give fewer")
    masks: dict[int, np.ndarray] = {}
    for one in given.annotated.annotations:
        assert one.mask is not None
        pixels = one.mask.pixels()
        frame = masks.setdefault(rows[one.image], np.zeros(pixels.shape, np.uint8))
        frame[pixels] = objects.index((one.class_name, one.track)) + 1
    found: list[Annotation] = []
    start = min(masks)
    for number, ids in follow(lambda row: _frame(model, images, row, size), len(images), masks):
        if number not in masks:
            found += _of_frame(images.uri(number), ids, objects)
        if progress:
            progress(number - start, len(images) - 1 - start)
    return PropagatedMasks(tuple(found), {}, len(images) - len(masks) - start, ())


def _of_frame(uri: str, ids: np.ndarray, objects: Sequence[tuple[str, str | None]]) -> Iterator[Annotation]:
    for number in np.unique(ids[ids > 0]).tolist():
        name, track = objects[number - 1]
        yield Annotation(
            uri, name, mask=Mask.of(ids == number), state="unsure", source="propagated", track=track or name
        )


def _answers(propagators: dict[str, MaskPropagator], seen: SeenImage, uri: str) -> Iterator[Annotation]:
    for name, propagator in propagators.items():
        if (answer := propagator.answer(seen)) is None:
            continue
        state, probability = propagator.trusted(answer)
        yield Annotation(uri, name, mask=Mask.of(answer.mask), state=state, source="propagated", score=probability)


def _examples(
    model: Model, images: ImageSet, given: Given, name: str, rows: dict[str, int], size: int | None
) -> list[Example]:
    """Return the pictures that show one class, and those where all was said and it was not shown."""
    masks: dict[str, np.ndarray] = {}
    for one in given.annotated.annotations:
        if one.class_name == name and one.mask is not None:
            pixels = one.mask.pixels()
            masks[one.image] = masks[one.image] | pixels if one.image in masks else pixels
    without = sorted(uri for uri in given.complete if uri in rows and uri not in masks)
    chosen = [*_spread(sorted(masks), _MOST_EXAMPLES), *_spread(without, _MOST_EXAMPLES)]
    examples = []
    for uri in chosen:
        seen = _frame(model, images, rows[uri], size)
        examples.append(Example(seen, masks.get(uri, np.zeros(seen.geometry.original, bool))))
    return examples


def _spread(uris: Sequence[str], most: int) -> list[str]:
    if len(uris) <= most:
        return list(uris)
    return [uris[place] for place in np.linspace(0, len(uris) - 1, most).astype(int)]


def _seen(model: Model, images: ImageSet, row: int, size: int | None) -> SeenImage:
    array = images.decode(row, channels=model.card.backbone.channels)
    return see(model, array, size=size, name=images.uri(row))


def _frame(model: Model, images: ImageSet, row: int, size: int | None) -> SeenImage:
    """Return a picture that cannot be left out."""
    try:
        return _seen(model, images, row, size)
    except BadImageError as error:
        raise FovealError(f"{error}; repair the picture, or take its mask away") from error
