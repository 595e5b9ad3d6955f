"""One annotation into a step: written, or refused and kept where somebody else has changed it meanwhile."""

import sqlite3
from dataclasses import replace

from foveal.annotate.classes import find_class
from foveal.annotate.journal import Step
from foveal.annotate.queries import index_of, records
from foveal.annotate.records import (
    Conflict,
    Edit,
    Record,
    columns_of,
    edit_from_json,
    edit_to_json,
    same_content,
)
from foveal.annotate.types import Annotation


def put(step: Step, edit: Edit, client: str) -> None:
    """Write a new annotation, or another version of one that was not changed since it was seen."""
    annotation = replace(edit.annotation, class_name=_present_name(step, edit.annotation.class_name))
    image = index_of(step.connection, annotation.image)
    columns = columns_of(edit, image=image, class_id=find_class(step.connection, annotation.class_name))
    if annotation.id is None:
        step.add("annotations", **columns)
        return
    present = _present(step, annotation.id)
    if present and same_content(present.annotation, annotation) and present.prompts == edit.prompts:
        return
    if present is None or (edit.seen is not None and present.revision != edit.seen):
        _refuse(step, annotation.id, edit, client)
    else:
        step.change("annotations", annotation.id, **columns)


def take_away(step: Step, found: int, seen: int | None, client: str) -> None:
    """Remove an annotation that was not changed since it was seen; one that is gone already is left so."""
    present = _present(step, found)
    if present and seen is not None and present.revision != seen:
        _refuse(step, found, None, client)
    elif present:
        step.remove("annotations", found)


def relabel(step: Step, uri: str, class_name: str | None, *, seen: int | None, client: str) -> None:
    """Give an image one accepted label, in place of that which was seen and of proposed ones; None takes it away."""
    wanted = None if class_name is None else Edit(Annotation(uri, _present_name(step, class_name)))
    name = wanted.annotation.class_name if wanted else None
    whole = [one for one in records(step.connection, uri=uri) if _is_label(one.annotation)]
    there = [one for one in whole if one.annotation.state == "accepted"]
    if seen is not None and there and there[0].revision != seen and there[0].annotation.class_name != name:
        _refuse(step, there[0].annotation.id, wanted, client)
        return
    same = [one for one in (*there, *whole) if one.annotation.class_name == name][:1]
    for one in whole:
        answered = one.annotation.state == "accepted" or (wanted and one.annotation.state != "rejected")
        if answered and one not in same:
            step.remove("annotations", _id(one))
    if same and same[0].annotation.state != "accepted":
        step.change("annotations", _id(same[0]), state="accepted")
    elif not same and wanted:
        put(step, wanted, client)


def take_wanted(step: Step, conflict: Conflict) -> None:
    """Write the version of a conflict that was refused, over what is there now."""
    step.connection.execute("DELETE FROM conflicts WHERE id = ?", (conflict.id,))
    stored, wanted = conflict.stored, conflict.wanted
    if wanted is not None and _is_label(wanted.annotation) and wanted.annotation.state == "accepted":
        relabel(step, wanted.annotation.image, wanted.annotation.class_name, seen=None, client=conflict.client)
    elif wanted is not None:
        put(step, Edit(replace(wanted.annotation, id=_id(stored) if stored else None), wanted.prompts), conflict.client)
    elif stored is not None:
        step.remove("annotations", _id(stored))


def conflict_of(connection: sqlite3.Connection, row: sqlite3.Row) -> Conflict:
    """Return a conflict of the database with what is stored now."""
    present = records(connection, ids=[row["annotation"]])
    wanted = edit_from_json(row["wanted"]) if row["wanted"] is not None else None
    return Conflict(row["id"], row["client"], present[0] if present else None, wanted)


def _refuse(step: Step, annotation: int | None, wanted: Edit | None, client: str) -> None:
    step.connection.execute(
        "INSERT INTO conflicts (revision, client, annotation, wanted) VALUES (?, ?, ?, ?)",
        (step.revision, client, annotation, edit_to_json(wanted) if wanted else None),
    )


def _present(step: Step, annotation: int) -> Record | None:
    found = records(step.connection, ids=[annotation])
    return found[0] if found else None


def _present_name(step: Step, name: str) -> str:
    found = find_class(step.connection, name)
    return str(step.connection.execute("SELECT name FROM classes WHERE id = ?", (found,)).fetchone()[0])


def _is_label(annotation: Annotation) -> bool:
    return annotation.mask is None and annotation.box is None


def _id(record: Record) -> int:
    assert record.annotation.id is not None
    return record.annotation.id
