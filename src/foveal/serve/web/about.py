"""A project as a window of the page of annotation needs it first, and after each change."""

import hashlib
from typing import Any, Literal

from foveal.annotate.formats import WRITTEN
from foveal.annotate.project import Project
from foveal.annotate.queries import Filter
from foveal.serve.web import annotate_words as words
from foveal.serve.web.annotator import Annotator

IMAGE_SETS: dict[str, Literal["labels", "masks"]] = {
    "image set of labels": "labels",
    "image set of masks": "masks",
}


def key_of(project: Project) -> str:
    """Return what tells projects at one address apart."""
    return hashlib.sha256(f"{project.folder.name} {project.created}".encode()).hexdigest()[:16]


def about_project(annotator: Annotator, client: str) -> dict[str, Any]:
    """Return what a window shows of the whole project."""
    project = annotator.project
    undo, redo = project.can(client=client)
    return {
        "name": project.folder.name,
        "key": key_of(project),
        "model": annotator.service.loaded.name,
        "num_images": project.num_images,
        "revision": project.revision,
        "classes": [
            {"id": one.id, "name": one.name, "colour": one.colour, "num_annotations": one.num_annotations}
            for one in project.classes()
        ],
        "undo": undo,
        "redo": redo,
        "conflicts": [words.conflict_json(one) for one in project.conflicts()],
        "num_undecided": project.count(Filter(annotation_states=("proposed", "unsure"))),
        "formats": [*IMAGE_SETS, *WRITTEN],
    }
