"""What may be written into a project: what `formats.check` asks of every annotation, and that it is on its picture."""

import math
from collections.abc import Callable

from foveal.annotate.formats.check import check_annotation
from foveal.annotate.records import Edit
from foveal.annotate.types import Annotation, Box, Prompt
from foveal.errors import FovealError, ProjectError

_MOST_CHARACTERS = 200
_MOST_POINTS = 10_000

Size = tuple[int, int]


def check_edit(edit: Edit, size_of: Callable[[str], Size]) -> None:
    """Refuse an annotation that no picture can have.

    Args:
        edit: what is to be written.
        size_of: width and height of a picture by its uri; asked where there is a mask, box or prompt.

    Raises:
        ProjectError: says what was seen and what is allowed.
    """
    annotation = edit.annotation
    try:
        check_annotation(annotation, where=f"'{annotation.class_name}' on {annotation.image}")
    except FovealError as error:
        raise ProjectError(str(error)) from error
    if annotation.track is not None and not 0 < len(annotation.track) <= _MOST_CHARACTERS:
        raise ProjectError(f"a track of {len(annotation.track)} characters; give 1 to {_MOST_CHARACTERS}, or none")
    if annotation.mask is None and annotation.box is None and not edit.prompts:
        return
    size = size_of(annotation.image)
    _check_size(annotation, size)
    if annotation.box is not None:
        _check_box(annotation.image, annotation.box, size)
    for prompt in edit.prompts:
        _check_prompt(prompt)


def check_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is none of the allowed ones."""
    if value not in allowed:
        raise ProjectError(f"{name}={value!r}; give one of {', '.join(allowed)}")


def _check_size(annotation: Annotation, size: Size) -> None:
    mask = annotation.mask
    if mask is None:
        return
    if (mask.width, mask.height) != size:
        raise ProjectError(
            f"the mask of '{annotation.class_name}' has {mask.width} x {mask.height} pixels, its picture "
            f"{annotation.image} {size[0]} x {size[1]}; give a mask of the picture's size, and where it was changed "
            "since it was annotated, put it back or remove its masks and boxes"
        )


def _check_box(uri: str, box: Box, size: Size) -> None:
    values = [float(value) for value in box]
    inside = (
        all(map(math.isfinite, values))
        and box.x >= -1
        and box.y >= -1
        and box.x + box.width <= size[0] + 1  # tools round to whole pixels in either direction
        and box.y + box.height <= size[1] + 1
    )
    if not inside or box.width <= 0 or box.height <= 0:
        raise ProjectError(
            f"a box at x={box.x:g}, y={box.y:g} of {box.width:g} x {box.height:g} pixels on {uri} of {size[0]} x "
            f"{size[1]}; give one inside of the picture"
        )


def _check_prompt(prompt: Prompt) -> None:
    check_one_of("kind", prompt.kind, ("point", "stroke", "box"))
    finite = all(math.isfinite(value) for point in prompt.points for value in point) and math.isfinite(prompt.radius)
    if not finite or not 0 < len(prompt.points) <= _MOST_POINTS or prompt.radius < 0:
        raise ProjectError(
            f"a {prompt.kind} of {len(prompt.points)} points and radius {prompt.radius}; give 1 to {_MOST_POINTS} "
            "points of finite numbers and a radius of at least 0"
        )
