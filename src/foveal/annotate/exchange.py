"""Annotations into a project and out of it, as files of other tools hold them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from foveal.annotate import classes
from foveal.annotate.classes import plain_name
from foveal.annotate.journal import Step
from foveal.annotate.queries import index_of, records
from foveal.annotate.records import Edit, columns_of
from foveal.annotate.types import AnnotatedImage, AnnotatedSet, Annotation, State
from foveal.errors import ProjectError

if TYPE_CHECKING:
    from foveal.annotate.reading import ProjectReader


def check_images(project: "ProjectReader", found: AnnotatedSet) -> None:
    """Refuse annotations of images that the project does not have, or of pictures of another size.

    Raises:
        ProjectError: names the first, and both sizes.
    """
    unknown = project.unknown([*(one.uri for one in found.images), *(one.image for one in found.annotations)])
    if unknown:
        raise ProjectError(
            f"{len(unknown)} annotated images are not in the project, first {unknown[0]}; its uris are like "
            f"{project.page(0, 1)[0].uri}"
        )
    marked = {one.image for one in found.annotations if one.mask is not None or one.box is not None}
    sizes = project.sizes(sorted(marked))
    for image in found.images:
        size = sizes.get(image.uri)
        if size is None or image.width == 0 or size == (image.width, image.height):
            continue
        if (size := project.size(image.uri)) != (image.width, image.height):  # it may be another picture by now
            raise ProjectError(
                f"{image.uri} is annotated at {image.width} x {image.height} pixels, and the picture has {size[0]} x "
                f"{size[1]}; give annotations of the picture as it is"
            )


def add_set(step: Step, found: AnnotatedSet) -> int:
    """Add the classes that are not there and the annotations that are not there yet; labels answer what was proposed.

    Returns:
        How many annotations were there already.
    """
    names = {one.name for one in classes.list_classes(step.connection)}
    for name in dict.fromkeys(
        plain_name(name) for name in (*found.classes, *(one.class_name for one in found.annotations))
    ):
        if name not in names:
            classes.add_class(step, name, None)
    present = {_content(one.annotation) for one in records(step.connection)}
    new = [one for one in found.annotations if _content(one) not in present]
    _answer(step, {one.image for one in new if one.state == "accepted" and one.mask is None and one.box is None})
    for annotation in new:
        class_id = classes.find_class(step.connection, annotation.class_name)
        image = index_of(step.connection, annotation.image)
        step.add("annotations", **columns_of(Edit(annotation), image=image, class_id=class_id))
    return len(found.annotations) - len(new)


def _answer(step: Step, uris: set[str]) -> None:
    """Remove the undecided labels of images that get one, as a label by hand does."""
    for record in records(step.connection, states=("proposed", "unsure")):
        annotation = record.annotation
        if annotation.image in uris and annotation.mask is None and annotation.box is None:
            step.remove("annotations", cast(int, annotation.id))


def to_set(project: "ProjectReader", states: Sequence[State]) -> AnnotatedSet:
    """Return the annotations in some states, with the pictures they are on and those that are done."""
    found = [one.annotation for one in project.annotations(states=states)]
    masks = {one.image: (one.mask.width, one.mask.height) for one in found if one.mask is not None}
    uris = sorted({one.image for one in found} | set(project.done()))
    sizes = masks | project.sizes([uri for uri in uris if uri not in masks], missing=True)
    pictures = tuple(AnnotatedImage(uri, *sizes.get(uri, (0, 0))) for uri in uris)
    return AnnotatedSet(tuple(one.name for one in project.classes()), pictures, tuple(found))


def _content(annotation: Annotation) -> tuple[object, ...]:
    return (
        annotation.image,
        plain_name(annotation.class_name),
        annotation.mask,
        annotation.box,
        annotation.state,
        annotation.track,
    )
