"""A project as what Label Studio calls a machine learning backend: it predicts, and learns from what people say there.

Source: the public protocol, labelstud.io/guide/ml_create: health, setup, predict, webhook, versions.
"""

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from foveal.annotate.adapters.label_studio_clicks import prompts_of
from foveal.annotate.adapters.label_studio_events import Events
from foveal.annotate.adapters.taught import Answers, Taught
from foveal.annotate.formats.documents import parse_xml
from foveal.annotate.formats.label_studio import image_of, result_of
from foveal.annotate.formats.pictures import Pictures
from foveal.annotate.formats.polygons import extent_of
from foveal.annotate.prompts import PromptSession
from foveal.annotate.types import AnnotatedImage, Annotation, Mask
from foveal.errors import FovealError

logger = logging.getLogger(__name__)

MOST_TASKS = 1000  # of one question
_LIKELY = 0.5  # of a pixel, above which it is part of a mask
_KINDS = {"Choices": "choices", "BrushLabels": "brushlabels", "RectangleLabels": "rectanglelabels"}


class Control(NamedTuple):
    """A part of a labelling interface that takes answers: its name, what it is for, and its classes."""

    name: str
    to_name: str
    classes: frozenset[str]


class LabelStudioBackend:
    """Answers Label Studio for one project. Pictures are known by their names; none is fetched from anywhere.

    Args:
        taught: the answers, and the project that what people say is written to.
    """

    def __init__(self, taught: Taught) -> None:
        self._taught = taught
        self._pictures = Pictures(taught.project.image_set)
        self._events = Events(taught.project, self._pictures)
        self._session: tuple[str, PromptSession] | None = None  # of the picture that was clicked on last

    @property
    def version(self) -> str:
        """See `Taught.version`."""
        return self._taught.version

    def setup(self, schema: str) -> str:
        """Look at the labelling interface of a project there, and return the version of the answers.

        Raises:
            FovealError: it has nothing that could be answered.
        """
        self._controls(schema)
        return self.version

    def predict(self, tasks: Sequence[Mapping[str, Any]], schema: str) -> list[dict[str, Any]]:
        """Return a prediction for each task.

        An answer that is not worth giving is none, and its score is low: so Label Studio, told to order by score, shows
        what is unsure first. A task whose picture the project does not have is answered with nothing and a score of 0.

        Args:
            tasks: as Label Studio sends them.
            schema: its labelling interface.

        Raises:
            FovealError: too many tasks, one that names no picture or one that fits several, or an odd interface.
        """
        if len(tasks) > MOST_TASKS:
            raise FovealError(f"{len(tasks)} tasks at once; ask for at most {MOST_TASKS}")
        controls = self._controls(schema)
        images = [self._image(task, alone=len(tasks) == 1) for task in tasks]
        known = list(dict.fromkeys(image.uri for image in images if image is not None))
        if missing := images.count(None):
            logger.warning("%d of %d tasks are of pictures that the project cannot show", missing, len(tasks))
        marks = bool({"brushlabels", "rectanglelabels"} & set(controls))
        answers = self._taught.of_images(known, labels="choices" in controls, masks=marks)
        found = dict(zip(known, answers, strict=True))
        version = self.version
        return [
            {"model_version": version, **(_prediction(image, found[image.uri], controls) if image else _NOTHING)}
            for image in images
        ]

    def click(self, task: Mapping[str, Any], schema: str, context: Mapping[str, Any]) -> dict[str, Any]:
        """Return the mask that points and boxes of a person ask for, as a prediction.

        Args:
            task: of the picture.
            schema: the labelling interface; it needs brushes of the class.
            context: what was done, see `label_studio_clicks`.

        Raises:
            FovealError: a picture that the project does not have, no such brush, or nothing that shows what is meant.
        """
        control = self._controls(schema).get("brushlabels")
        if (image := image_of(task, [], self._pictures, where=_where(task))) is None:
            raise FovealError(f"{_where(task)} is of a picture that the project does not have; make it of its images")
        class_name, prompts = prompts_of(context, image)
        if control is None or class_name not in control.classes:
            raise FovealError(f"the labelling interface has no BrushLabels with {class_name!r}, to take a mask; add it")
        if self._session is None or self._session[0] != image.uri:
            self._session = image.uri, PromptSession(self._taught.look(image.uri))
        likely = self._session[1].mask(prompts)
        mask = likely > _LIKELY
        score = float(likely[mask].mean()) if mask.any() else 0.0
        answer = Annotation(image.uri, class_name, Mask.of(mask), None, "proposed", "propagated", score)
        given = Answers((answer,) if mask.any() else (), score)
        return {"model_version": self.version, **_prediction(image, given, {"brushlabels": control})}

    def event(self, action: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Learn from an event; see `label_studio_events`.

        Returns:
            The version from now on, and how many annotations were taken and taken back.
        """
        taken = self._events.take(action, content)
        return {"model_version": self.version, **taken._asdict()}

    def _image(self, task: Mapping[str, Any], *, alone: bool) -> AnnotatedImage | None:
        """Return the picture of a task; one that is odd is refused alone, and does not stop the answers of others."""
        try:
            return image_of(task, [], self._pictures, where=_where(task))
        except FovealError as error:
            if alone:
                raise
            logger.warning("%s", error)
            return None

    def _controls(self, schema: str) -> dict[str, Control]:
        """Return what of an interface can be answered, by kind; of several of a kind the first."""
        found: dict[str, Control] = {}
        content = schema.encode("utf-8", "surrogatepass")
        for element in parse_xml(content, where="the labelling interface").iter():
            kind, name, to_name = _KINDS.get(element.tag), element.get("name"), element.get("toName")
            of_region = element.get("perRegion", "").lower() == "true"
            if kind and name and to_name and kind not in found and not of_region:
                classes = frozenset(one.get("value", "") for one in element.iter() if one.tag in ("Label", "Choice"))
                found[kind] = Control(name, to_name, classes)
        if not found:
            raise FovealError(f"the labelling interface has none of {', '.join(_KINDS)}; add one, for answers to go to")
        return found


_NOTHING: dict[str, Any] = {"score": 0.0, "result": []}


def _prediction(image: AnnotatedImage, answers: Answers, controls: Mapping[str, Control]) -> dict[str, Any]:
    results = []
    for one in answers.annotations:
        kind = "choices" if one.mask is None else "brushlabels" if "brushlabels" in controls else "rectanglelabels"
        control = controls.get(kind)
        if control is None or one.class_name not in control.classes:
            continue
        if kind == "rectanglelabels" and one.mask is not None:
            one = replace(one, mask=None, box=extent_of(one.mask.pixels()))
        names = {"from_name": control.name, "to_name": control.to_name}
        # A region keeps its name when a prediction becomes part of an annotation, where names must differ.
        results.append({**result_of(one, image, secrets.token_hex(5)), **names})
    return {"score": answers.score, "result": results}


def _where(task: Any) -> str:
    return f"task {task.get('id', '')}" if isinstance(task, Mapping) else "a task"
