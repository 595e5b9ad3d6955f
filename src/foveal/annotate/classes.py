"""The classes of a project: added, renamed, merged and removed, while people use them, without losing an annotation."""

import colorsys
import re
import sqlite3
import unicodedata

from foveal.annotate.journal import Step
from foveal.annotate.records import Class
from foveal.errors import ProjectError, nearest

_MOST_CHARACTERS = 200
_GOLDEN = 0.618034  # of the way round the circle of hues: each new colour falls into the widest gap


def list_classes(connection: sqlite3.Connection) -> tuple[Class, ...]:
    """Return the classes in the order in which they were added, with their numbers of annotations."""
    rows = connection.execute(
        "SELECT name, colour, (SELECT count(*) FROM annotations WHERE class = classes.id AND state != 'rejected') "
        "FROM classes ORDER BY id"
    )
    return tuple(Class(*row) for row in rows)


def find_class(connection: sqlite3.Connection, name: str) -> int:
    """Return the id of a class by its name, or by one that it had before it was renamed or merged.

    Raises:
        ProjectError: no class of this name; the nearest is named.
    """
    row = connection.execute("SELECT id FROM classes WHERE name = ?", (name,)).fetchone()
    row = (
        row
        or connection.execute(
            "SELECT class FROM earlier_names JOIN classes ON classes.id = class WHERE earlier_names.name = ?", (name,)
        ).fetchone()
    )
    if row is None:
        names = [one[0] for one in connection.execute("SELECT name FROM classes ORDER BY id")]
        raise ProjectError(
            f"the project has no class '{name}'{nearest(name, names)} It has {', '.join(names[:10]) or 'none yet'}; "
            "add the class, or choose one of these"
        )
    return int(row[0])


def add_class(step: Step, name: str, colour: str | None) -> None:
    """Add a class; ProjectError for a name that is there or cannot be one."""
    name = checked_name(name)
    if step.connection.execute("SELECT 1 FROM classes WHERE name = ?", (name,)).fetchone():
        raise ProjectError(f"the project has a class '{name}' already; choose another name")
    count = step.connection.execute("SELECT count(*) FROM classes").fetchone()[0]
    step.add("classes", name=name, colour=_colour_of(count) if colour is None else checked_colour(colour))


def rename_class(step: Step, name: str, new: str) -> None:
    """Give a class another name; who still writes the old one means the same class."""
    new, found = checked_name(new), find_class(step.connection, name)
    taken = step.connection.execute("SELECT id FROM classes WHERE name = ?", (new,)).fetchone()
    if taken and taken[0] != found:
        raise ProjectError(f"the project has a class '{new}' already; merge '{name}' into it, or choose another name")
    if not taken:
        step.change("classes", found, name=new)
        _remember(step, name, found)


def merge_class(step: Step, name: str, into: str) -> None:
    """Give all annotations of a class to another one, and remove it."""
    found, target = find_class(step.connection, name), find_class(step.connection, into)
    if found == target:
        raise ProjectError(f"'{name}' and '{into}' are one class; name two")
    for row in step.connection.execute("SELECT id FROM annotations WHERE class = ?", (found,)).fetchall():
        step.change("annotations", row["id"], **{"class": target})
    step.remove("classes", found)
    step.connection.execute("UPDATE earlier_names SET class = ? WHERE class = ?", (target, found))
    _remember(step, name, target)


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
    name = unicodedata.normalize("NFC", name).strip()
    if not name or len(name) > _MOST_CHARACTERS or any(unicodedata.category(one) in ("Cc", "Cs") for one in name):
        raise ProjectError(
            f"{name[:50]!r} cannot be the name of a class; give 1 to {_MOST_CHARACTERS} characters on one line"
        )
    return name


def checked_colour(colour: str) -> str:
    """Return a colour #rrggbb in small letters; ProjectError for anything else."""
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
        raise ProjectError(f"{colour[:50]!r} is no colour; write it as #rrggbb, such as #1f77b4")
    return colour.lower()


def _colour_of(number: int) -> str:
    red, green, blue = colorsys.hsv_to_rgb((0.58 + number * _GOLDEN) % 1, 0.75, 0.85)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _remember(step: Step, name: str, class_id: int) -> None:
    step.connection.execute("INSERT OR REPLACE INTO earlier_names VALUES (?, ?)", (name, class_id))
