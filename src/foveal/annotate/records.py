"""What a project gives back: annotations with their revision, images, classes, and what two people both wrote."""

import json
import sqlite3
from dataclasses import dataclass, replace
from typing import Any, Literal

from foveal.annotate.types import Annotation, Box, Mask, Prompt

ImageState = Literal["open", "done", "skipped"]


@dataclass(frozen=True)
class Record:
    """An annotation as a project holds it.

    Attributes:
        annotation: with its id.
        revision: of the step that wrote it so; who changes it names the revision that was seen.
        prompts: what a person did to make the mask.
        index: row of the image.
    """

    annotation: Annotation
    revision: int
    prompts: tuple[Prompt, ...] = ()
    index: int = 0


@dataclass(frozen=True)
class Edit:
    """An annotation to be written.

    Attributes:
        annotation: without an id a new one; else what the one of this id becomes.
        prompts: what a person did to make the mask.
        seen: the revision that it replaces; None replaces whatever is there.
    """

    annotation: Annotation
    prompts: tuple[Prompt, ...] = ()
    seen: int | None = None


@dataclass(frozen=True)
class Conflict:
    """Two versions of one annotation: one was written first, the other was refused, and both are kept.

    Attributes:
        id: of the conflict.
        client: who wrote second.
        stored: what the project holds; None where it was removed.
        wanted: what was refused; None where it was to be removed.
    """

    id: int
    client: str
    stored: Record | None
    wanted: Edit | None

    @property
    def words(self) -> str:
        """What happened and what can be done, the same for both people."""
        known = self.stored or self.wanted
        return (
            f"{known.annotation.image if known else 'an annotation'} was changed twice at once: first it is "
            f"{self.said_first}, then {self.said_second}; both are kept, choose one"
        )

    @property
    def said_first(self) -> str:
        """What the project holds, in words."""
        return _said(self.stored.annotation) if self.stored else "removed"

    @property
    def said_second(self) -> str:
        """What was refused, in words."""
        return _said(self.wanted.annotation) if self.wanted else "removed"


@dataclass(frozen=True)
class Written:
    """What became of a change.

    Attributes:
        revision: of the step; of the project where nothing changed.
        ids: annotations that were added or changed, in the order of the ids.
        conflicts: what was refused because it was changed elsewhere meanwhile; the rest is written.
        words: what was done, undone or done again.
        left: of an undo or redo, the annotations that stay as they are since others changed them.
    """

    revision: int
    ids: tuple[int, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    words: str = ""
    left: int = 0


@dataclass(frozen=True)
class Class:
    """A class: its name, its colour as #rrggbb, how many annotations it has, rejected ones not counted, and its id."""

    name: str
    colour: str
    num_annotations: int = 0
    id: int = 0


@dataclass(frozen=True)
class ProjectImage:
    """An image of a project.

    Attributes:
        index: row in the image set and in its feature store.
        uri: of the image set.
        state: "open", "done" (all that is on it was said) or "skipped".
        held_out: its labels measure and do not teach.
        labels: of the whole image, accepted and not yet decided.
        num_marks: accepted masks and boxes.
        num_undecided: masks and boxes that nobody has accepted or rejected.
        revision: of the step that last changed its state.
    """

    index: int
    uri: str
    state: ImageState
    held_out: bool
    labels: tuple[Record, ...] = ()
    num_marks: int = 0
    num_undecided: int = 0
    revision: int = 0


@dataclass(frozen=True)
class Changes:
    """What changed since a revision.

    Attributes:
        revision: up to which.
        records: annotations that are new or changed.
        removed: ids of those that are gone.
        images: rows of the images whose annotations or state changed.
        classes: whether these changed.
        everything: more than is worth telling one by one; read anew.
    """

    revision: int
    records: tuple[Record, ...] = ()
    removed: tuple[int, ...] = ()
    images: tuple[int, ...] = ()
    classes: bool = False
    everything: bool = False


def columns_of(edit: Edit, *, image: int, class_id: int) -> dict[str, Any]:
    """Return the columns of an annotation in the database."""
    annotation, mask = edit.annotation, edit.annotation.mask
    prompts = [[one.kind, one.points, one.positive, one.radius] for one in edit.prompts]
    return {
        "image": image,
        "class": class_id,
        "height": mask.height if mask else None,
        "width": mask.width if mask else None,
        "counts": mask.counts.decode("ascii") if mask else None,
        "box": json.dumps(annotation.box) if annotation.box else None,
        "state": annotation.state,
        "source": annotation.source,
        "score": annotation.score,
        "track": annotation.track,
        "prompts": json.dumps(prompts),
    }


def record_of(row: sqlite3.Row) -> Record:
    """Return the record of a row with the further columns uri and class_name."""
    mask = Mask(row["height"], row["width"], row["counts"].encode("ascii")) if row["counts"] is not None else None
    annotation = Annotation(
        image=row["uri"],
        class_name=row["class_name"],
        mask=mask,
        box=Box(*json.loads(row["box"])) if row["box"] else None,
        state=row["state"],
        source=row["source"],
        score=row["score"],
        id=row["id"],
        track=row["track"],
    )
    return Record(annotation, row["revision"], _prompts(json.loads(row["prompts"])), row["image"])


def edit_to_json(edit: Edit) -> str:
    """Return an edit as text; `edit_from_json` reads it."""
    columns = columns_of(edit, image=0, class_id=0)
    return json.dumps(
        {**columns, "uri": edit.annotation.image, "class_name": edit.annotation.class_name, "id": edit.annotation.id}
    )


def edit_from_json(text: str) -> Edit:
    """Return the edit that `edit_to_json` wrote, without what was seen."""
    record = record_of({**json.loads(text), "revision": 0})  # type: ignore[arg-type]
    return Edit(record.annotation, record.prompts)


def same_content(one: Annotation, other: Annotation) -> bool:
    """Tell whether two annotations say the same, whatever their ids."""
    return replace(one, id=None) == replace(other, id=None)


def _prompts(found: list[list[Any]]) -> tuple[Prompt, ...]:
    return tuple(
        Prompt(kind, tuple((x, y) for x, y in points), positive, radius) for kind, points, positive, radius in found
    )


def _said(annotation: Annotation) -> str:
    what = "a mask of " if annotation.mask else "a box of " if annotation.box else ""
    return f"{what}'{annotation.class_name}', {annotation.state}"
