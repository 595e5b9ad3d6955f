"""What every annotated set keeps to, whoever made it: checked after it was read, and before it is written."""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import get_args

from foveal.annotate.formats.pictures import check_name
from foveal.annotate.formats.runs import check_mask
from foveal.annotate.types import AnnotatedImage, AnnotatedSet, Annotation, Source, State
from foveal.errors import FovealError, nearest


def check_set(annotated: AnnotatedSet, *, where: str) -> None:
    """Refuse a set that contradicts itself.

    Args:
        annotated: the set.
        where: names it in errors.

    Raises:
        FovealError: classes or pictures twice or without a name, annotations of others, masks of another size than
            their picture or damaged, boxes and scores that are none.
    """
    _check_once(annotated.classes, where=f"{where}: class")
    _check_once((image.uri for image in annotated.images), where=f"{where}: picture")
    for name in annotated.classes:
        if not name.strip() or any(unicodedata.category(one) in ("Cc", "Cs") for one in name):
            raise FovealError(f"{where}: {name[:50]!r} cannot be the name of a class; give characters on one line")
    images = {image.uri: image for image in annotated.images}
    for image in annotated.images:
        check_name(image.uri)
    for place, one in enumerate(annotated.annotations):
        _check(one, images.get(one.image), annotated.classes, where=f"{where}: annotation {place + 1} of {one.image}")


def _check_once(names: Iterable[str], *, where: str) -> None:
    name, count = (Counter(names).most_common(1) or [("", 0)])[0]
    if count > 1:
        raise FovealError(f"{where} {name!r} is there {count} times; give each its own name")


def _check(one: Annotation, image: AnnotatedImage | None, classes: tuple[str, ...], *, where: str) -> None:
    if image is None:
        raise FovealError(f"{where}, which is not among the pictures; add it, or remove the annotation")
    if one.class_name not in classes:
        raise FovealError(
            f"{where}: {one.class_name!r} is no class{nearest(one.class_name, classes)}; add it, or rename"
        )
    if one.mask is not None and (one.mask.width, one.mask.height) != (image.width, image.height):
        raise FovealError(
            f"{where}: a mask of {one.mask.width} x {one.mask.height} pixels, the picture has {image.width} x "
            f"{image.height}; correct it"
        )
    check_annotation(one, where=where)


def check_annotation(one: Annotation, *, where: str) -> None:
    """Refuse an annotation that nowhere can be one: of a set or of a project, whatever its picture.

    Raises:
        FovealError: a damaged mask, a box or score that is none, or a state or source that is not known.
    """
    if one.mask is not None:
        check_mask(one.mask, where=where)
    if one.box is not None and (not all(map(math.isfinite, one.box)) or min(one.box[2:]) < 0):
        raise FovealError(f"{where}: {tuple(one.box)} is no box (x, y, width, height in pixels); correct it")
    if one.score is not None and not 0 <= one.score <= 1:
        raise FovealError(f"{where}: a score of {one.score}; allowed are 0 to 1")
    if one.state not in get_args(State) or one.source not in get_args(Source):
        raise FovealError(
            f"{where}: state {one.state!r}, source {one.source!r}; allowed are {', '.join(get_args(State))}, and "
            f"{', '.join(get_args(Source))}"
        )
