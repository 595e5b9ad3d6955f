"""The classes of a project: added, renamed, merged and removed, while people use them, without losing an annotation."""

import colorsys
import re
import sqlite3
import unicodedata

from foveal.annotate.journal import Step
from foveal.annotate.records import Class
from foveal.errors import ProjectError, nearest

_MOST_CHARACTERS = 200
_WEIGHT = {"accepted": 2, "rejected": 1, "proposed": 0, "unsure": 0}  # of two labels of an image
_GOLDEN = 0.618034  # of the way round the circle of hues: each new colour falls into the widest gap


def list_classes(connection: sqlite3.Connection) -> tuple[Class, ...]:
    """Return the classes in the order in which they were added, with their numbers of annotations."""
    rows = connection.execute(
        "SELECT name, colour, (SELECT count(*) FROM annotations WHERE class = classes.id AND state != 'rejected'), id "
        "FROM classes ORDER BY id"
    )
    return tuple(Class(*row) for row in rows)


def find_class(connection: sqlite3.Connection, name: str) -> int:
    """Return the id of a class by its name, or by one that it had before it was renamed or merged.

    Raises:
        ProjectError: no class of this name; the nearest is named.
    """
    name = plain_name(name)
    row = connection.execute("SELECT id FROM classes WHERE name = ?", (name,)).fetchone()
    found = int(row[0]) if row else _by_earlier_name(connection, name)
    if found is None:
        names = [one[0] for one in connection.execute("SELECT name FROM classes ORDER BY id")]
        raise ProjectError(
            f"the project has no class '{name}'{nearest(name, names) or '.'} It has "
            f"{', '.join(names[:10]) or 'none yet'}; add the class, or choose one of these"
        )
    return found


def _by_earlier_name(connection: sqlite3.Connection, name: str | None) -> int | None:
    """Return the class that had a name, or the one into which that class was merged."""
    passed: set[str | None] = set()
    while name not in passed:
        passed.add(name)
        row = connection.execute("SELECT class FROM earlier_names WHERE name = ?", (name,)).fetchone()
        if row is None or connection.execute("SELECT 1 FROM classes WHERE id = ?", (row[0],)).fetchone():
            return row and int(row[0])
        name = _last_name(connection, row[0])
    return None


def _last_name(connection: sqlite3.Connection, class_id: int) -> str | None:
    """Return the name with which a class was removed or merged."""
    row = connection.execute(
        "SELECT json_extract(before, '$[0]') FROM changes WHERE place = 'classes' AND row = ? AND after IS NULL "
        "ORDER BY revision DESC LIMIT 1",
        (class_id,),
    ).fetchone()
    return row and str(row[0])


def add_class(step: Step, name: str, colour: str | None) -> None:
    """Add a class; ProjectError for a name that is there or cannot be one."""
    name = checked_name(name)
    if step.connection.execute("SELECT 1 FROM classes WHERE name = ?", (name,)).fetchone():
        raise ProjectError(f"the project has a class '{name}' already; choose another name")
    count = step.connection.execute("SELECT count(*) FROM classes").fetchone()[0]
    step.add("classes", name=name, colour=_colour_of(count) if colour is None else checked_colour(colour))


def rename_class(step: Step, name: str, new: str) -> None:
    """Give a class another name; who still writes the old one, or the new one after undo, means the same class."""
    new, found = checked_name(new), find_class(step.connection, name)
    taken = step.connection.execute("SELECT id FROM classes WHERE name = ?", (new,)).fetchone()
    if taken and taken[0] != found:
        raise ProjectError(f"the project has a class '{new}' already; merge '{name}' into it, or choose another name")
    if not taken:
        _remember(step, found, means=found)
        step.change("classes", found, name=new)
        _remember(step, found, means=found)


def merge_class(step: Step, name: str, into: str) -> None:
    """Give all annotations of a class to another one, and remove it; an image keeps one label of both, the decided."""
    found, target = find_class(step.connection, name), find_class(step.connection, into)
    if found == target:
        raise ProjectError(f"'{name}' and '{into}' are one class; name two")
    labels = {row["image"]: row for row in _annotations_of(step, target) if row["is_label"]}
    for row in _annotations_of(step, found):
        other = labels.get(row["image"]) if row["is_label"] else None
        stays = other is None or _WEIGHT[row["state"]] > _WEIGHT[other["state"]]
        if stays and other:
            step.remove("annotations", other["id"])
        if stays:
            step.change("annotations", row["id"], **{"class": target})
        else:
            step.remove("annotations", row["id"])
    _remember(step, found, means=target)
    step.remove("classes", found)


def remove_class(step: Step, name: str, *, with_annotations: bool) -> None:
    """Remove a class; ProjectError where it is used and its annotations are not to go with it."""
    found = find_class(step.connection, name)
    used = step.connection.execute("SELECT id, state FROM annotations WHERE class = ?", (found,)).fetchall()
    if (accepted := sum(row["state"] == "accepted" for row in used)) and not with_annotations:
        raise ProjectError(
            f"{accepted} accepted annotations are of the class '{name}'; merge it into another class, or remove it "
            "with its annotations"
        )
    for row in used:
        step.remove("annotations", row["id"])
    step.remove("classes", found)


def checked_name(name: str) -> str:
    """Return the name of a class without blanks around it; ProjectError where it cannot be one."""
    name = plain_name(name)
    if not name or len(name) > _MOST_CHARACTERS or any(unicodedata.category(one) in ("Cc", "Cs") for one in name):
        raise ProjectError(
            f"{name[:50]!r} cannot be the name of a class; give 1 to {_MOST_CHARACTERS} characters on one line"
        )
    return name


def plain_name(name: str) -> str:
    """Return a name as it is kept: composed characters, no blanks around it."""
    return unicodedata.normalize("NFC", name).strip()


def checked_colour(colour: str) -> str:
    """Return a colour #rrggbb in small letters; ProjectError for anything else."""
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
        raise ProjectError(f"{colour[:50]!r} is no colour; write it as #rrggbb, such as #1f77b4")
    return colour.lower()


def _colour_of(number: int) -> str:
    red, green, blue = colorsys.hsv_to_rgb((0.58 + number * _GOLDEN) % 1, 0.75, 0.85)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _annotations_of(step: Step, class_id: int) -> list[sqlite3.Row]:
    return step.connection.execute(
        "SELECT id, image, state, counts IS NULL AND box IS NULL AS is_label FROM annotations WHERE class = ?",
        (class_id,),
    ).fetchall()


def _remember(step: Step, class_id: int, *, means: int) -> None:
    """Keep what the present name of a class means once it has another, or is gone."""
    step.connection.execute(
        "INSERT OR REPLACE INTO earlier_names SELECT name, ? FROM classes WHERE id = ?", (means, class_id)
    )
