"""What reading a file of annotations returns."""

from typing import NamedTuple

from foveal.annotate.types import AnnotatedSet


class Found(NamedTuple):
    """What a file holds.

    Attributes:
        annotated: what could be read.
        notes: what of it could not, or was taken as something else; a sentence each.
    """

    annotated: AnnotatedSet
    notes: tuple[str, ...]
