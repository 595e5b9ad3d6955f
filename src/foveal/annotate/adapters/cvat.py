"""A project as an auto-annotation function of CVAT: `cvat-cli task auto-annotate` with this module.

Source: the public interface of the package cvat-sdk, docs.cvat.ai.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from PIL.Image import Image

import foveal
from foveal.annotate.adapters.taught import Taught
from foveal.annotate.formats.polygons import rings_of
from foveal.annotate.project import Project
from foveal.annotate.set_features import open_features
from foveal.annotate.types import Annotation
from foveal.errors import FovealError, nearest

Kind = Literal["labels", "masks", "both"]
_TYPES = {"labels": "tag", "masks": "mask", "both": "any"}  # of labels in CVAT


class ProjectFunction:
    """A detection function: labels of whole pictures as tags, and masks, as a project's accepted ones teach.

    What is unsure is not answered, since CVAT keeps no score.

    Args:
        taught: the answers.
        kind: which answers are given; those of CVAT's task must take them.
    """

    def __init__(self, taught: Taught, *, kind: Kind = "both") -> None:
        self._cvat = _cvat()
        self._taught, self._kind = taught, kind
        self._numbers = {one.name: number for number, one in enumerate(taught.project.classes())}
        if not self._numbers:
            raise FovealError(f"{taught.project.folder} has no classes yet; label some of its images first")

    @cached_property
    def spec(self) -> Any:
        """The classes of the project."""
        more = {} if self._kind == "both" else {"type": _TYPES[self._kind]}
        labels = [self._cvat.label_spec(name, number, **more) for name, number in self._numbers.items()]
        return self._cvat.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: Image) -> list[Any]:
        """Return what is to be said of a picture.

        Args:
            context: of CVAT: the frame's name, the least score, and whether masks are to be polygons.
            image: the picture.
        """
        wants = {"labels": self._kind != "masks", "masks": self._kind != "labels"}
        answers = self._taught.of_picture(image.convert("RGB"), name=context.frame_name, **wants)
        least = context.conf_threshold or 0
        return [
            shape
            for one in answers.annotations
            if (one.score or 0) >= least and one.class_name in self._numbers
            for shape in self._shapes(one, polygons=context.conv_mask_to_poly)
        ]

    def _shapes(self, one: Annotation, *, polygons: bool) -> list[Any]:
        number = self._numbers[one.class_name]
        if one.mask is None:
            return [self._cvat.tag(number)]
        pixels = one.mask.pixels()
        if polygons:
            return [self._cvat.polygon(number, ring.ravel().tolist()) for ring in rings_of(pixels)]
        from cvat_sdk.masks import encode_mask

        return [self._cvat.mask(number, encode_mask(pixels))]


def create(
    project: str, model: str, *, store: str | None = None, precision: float = 0.9, kind: str = "both"
) -> ProjectFunction:
    """Open a project as a function; CVAT calls this with the parameters of its command line.

    Args:
        project: its folder.
        model: whatever `foveal.load` takes.
        store: of features of the project's images; None is that of the project, made where it lacks.
        precision: wanted of answers.
        kind: "labels", "masks" or "both".
    """
    if kind not in get_args(Kind):
        raise FovealError(f"kind={kind!r}{nearest(kind, get_args(Kind))}; allowed are {', '.join(get_args(Kind))}")
    _cvat()
    loaded = foveal.load(model)
    opened = Project.open(project, model=loaded)
    features = open_features(opened, loaded, None if store is None else Path(store))
    return ProjectFunction(Taught(opened, loaded, features, precision=precision), kind=kind)  # type: ignore[arg-type]


def _cvat() -> Any:
    try:
        from cvat_sdk import auto_annotation
    except ModuleNotFoundError as error:
        raise FovealError("cvat-sdk is not installed: pip install cvat-sdk") from error
    return auto_annotation
