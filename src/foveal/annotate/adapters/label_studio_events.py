"""What people say in Label Studio, as its webhooks tell it, into a project: made, changed and deleted annotations.

Source: the public description of the events, labelstud.io/guide/webhook_reference. A deletion names the annotation by
its number alone, so the log of the project keeps of each step which annotation of Label Studio it came from.
"""

import logging
import secrets
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from foveal.annotate.classes import checked_name
from foveal.annotate.formats.documents import field
from foveal.annotate.formats.label_studio import read_task
from foveal.annotate.formats.pictures import Pictures
from foveal.annotate.project import Project
from foveal.annotate.records import Edit
from foveal.annotate.types import Annotation
from foveal.errors import FovealError

logger = logging.getLogger(__name__)

CLIENT = "label-studio"  # in the log of the project
_SAID = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED")
_DELETED = "ANNOTATIONS_DELETED"


class Taken(NamedTuple):
    """What became of an event: how many annotations are in the project now, and how many no longer."""

    num_taken: int = 0
    num_removed: int = 0


class Events:
    """Writes what events say, one after the other, into a project.

    Args:
        project: whose accepted annotations they become.
        pictures: of the project.
    """

    def __init__(self, project: Project, pictures: Pictures) -> None:
        self._project, self._pictures = project, pictures
        self._one = threading.Lock()

    def take(self, action: str, content: Mapping[str, Any]) -> Taken:
        """Take an event.

        The label of an annotation takes the place of that of the image, its masks and boxes that of those which came
        from another tool before. What an annotation no longer says, or said before it was deleted, is taken away again,
        unless it was there before it, or somebody has changed it here since.

        Args:
            action: the name of the event; others than of annotations change nothing.
            content: the event.

        Raises:
            FovealError: an event without its payload, a picture that the project does not have, or several labels.
        """
        with self._one:
            if action == _DELETED:
                deleted = field(content, "annotations", list, where="the event")
                return Taken(num_removed=sum(self._take_back(_origin(content, one)) for one in deleted))
            found = Taken()
            refused: list[FovealError] = []
            for annotation, task in _said(content) if action in _SAID else ():
                try:
                    one = self._take(annotation, task, _origin(content, annotation))
                    found = Taken(found.num_taken + one.num_taken, found.num_removed + one.num_removed)
                except FovealError as error:  # of many the others are taken
                    refused.append(error)
            if refused:
                raise refused[0]
            return found

    def _take(self, annotation: Mapping[str, Any], task: Mapping[str, Any], origin: str) -> Taken:
        where = f"task {task.get('id', '')}"
        counts: Counter[str] = Counter()
        found = read_task({**task, "annotations": [annotation], "predictions": []}, self._pictures, counts, where=where)
        if found is None:
            raise FovealError(f"{where} is of a picture that the project does not have; make it of its images")
        if counts:
            logger.warning("%s: results are left out: %s", where, ", ".join(sorted(counts)))
        image, said = found
        said = [
            replace(one, class_name=checked_name(one.class_name), state="accepted", source="imported", score=None)
            for one in said
        ]
        labels = list(dict.fromkeys(one.class_name for one in said if one.mask is None and one.box is None))
        marks = [one for one in said if one.mask is not None or one.box is not None]
        if len(labels) > 1:
            raise FovealError(f"{where} has the labels {', '.join(labels)}; a project has one an image: choose")
        self._add_classes([one.class_name for one in said])
        earlier = self._project.written(CLIENT, origin)
        request = f"{origin}{annotation.get('updated_at') or secrets.token_hex(8)}"
        if labels:
            self._project.label(image.uri, labels[0], client=CLIENT, request=f"{request} label")
        num_removed = self._replace(image.uri, marks, {} if labels else earlier, earlier, request)
        return Taken(len(labels) + len(marks), num_removed)

    def _replace(
        self, uri: str, marks: Sequence[Annotation], labels: Collection[int], earlier: Collection[int], request: str
    ) -> int:
        """Write marks in place of earlier ones, and take labels away; return how many are gone.

        Args:
            uri: of the image.
            marks: equal ones that are there stay as they are.
            labels: ids of those that are no longer said.
            earlier: ids of what the same annotation said before.
            request: names the step.
        """
        new = {(one.class_name, one.mask, one.box): one for one in marks}
        remove = []
        for record in self._project.annotations(uri, states=("accepted",)):
            one = record.annotation
            assert one.id is not None
            if one.mask is None and one.box is None:
                is_gone = one.id in labels
            else:
                is_kept = new.pop((one.class_name, one.mask, one.box), None) is not None
                is_gone = not is_kept and (one.id in earlier or bool(marks and one.source == "imported"))
            if is_gone:
                remove.append((one.id, record.revision))
        if new or remove:
            words = f"take {len(new)} marks on {uri} from Label Studio"
            edits = [Edit(one) for one in new.values()]
            self._project.write(edits, remove=remove, client=CLIENT, words=words, request=f"{request} marks")
        return len(remove)

    def _take_back(self, origin: str) -> int:
        """Remove what an annotation said, as far as that is unchanged; return how many."""
        earlier = self._project.written(CLIENT, origin)
        if earlier:
            words = f"take {len(earlier)} annotations away that were deleted in Label Studio"
            self._project.write(remove=list(earlier.items()), client=CLIENT, words=words)
        return len(earlier)

    def _add_classes(self, names: Collection[str]) -> None:
        known = {one.name for one in self._project.classes()}
        for name in dict.fromkeys(names):
            if name not in known:
                self._project.add_class(name, client=CLIENT)


def _said(content: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield annotations with their tasks: one, or lists of both."""
    if "annotation" not in content:
        raise FovealError("the event has no annotation; let the webhook send its payload")
    annotations, tasks = (field(content, name, (Mapping, list), where="the event") for name in ("annotation", "task"))
    pairs = [(annotations, tasks)] if isinstance(annotations, Mapping) else zip(annotations, tasks, strict=False)
    for annotation, task in pairs:
        if not isinstance(annotation, Mapping) or not isinstance(task, Mapping):
            raise FovealError("the event has annotations or tasks that are none; this is no event of Label Studio")
        yield annotation, task


def _origin(content: Mapping[str, Any], annotation: Any) -> str:
    """Return how the names of all steps begin that come from an annotation of Label Studio."""
    project = content.get("project")
    number = project.get("id") if isinstance(project, Mapping) else None
    return f"{CLIENT} {number} {field(annotation, 'id', (int, str), where='the annotation')} "
