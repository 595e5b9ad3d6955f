"""What a computer proposes, beside what people have decided already."""

from collections.abc import Sequence
from functools import cache

from foveal.annotate.classes import find_class
from foveal.annotate.journal import Step
from foveal.annotate.queries import index_of
from foveal.annotate.records import Edit, columns_of
from foveal.annotate.types import Annotation
from foveal.errors import ProjectError

_UNDECIDED = "('proposed', 'unsure')"


def check(annotations: Sequence[Annotation]) -> None:
    """Refuse what is no proposal, and labels beside masks."""
    if stray := next((one for one in annotations if one.state not in ("proposed", "unsure")), None):
        raise ProjectError(f"a proposal for {stray.image} is '{stray.state}'; propose as 'proposed' or 'unsure'")
    if len({_is_label(one) for one in annotations}) > 1:
        raise ProjectError("labels and masks are proposed together; propose first the ones, then the others")


def replace_undecided(step: Step, annotations: Sequence[Annotation]) -> int:
    """Remove the undecided proposals of the same classes (of labels: all) and write these.

    Returns:
        How many are not written, since a person has decided already.
    """
    if not annotations:
        return 0
    labels = _is_label(annotations[0])
    kind = "counts IS NULL AND box IS NULL" if labels else "NOT (counts IS NULL AND box IS NULL)"
    connection = step.connection
    class_ids = {name: find_class(connection, name) for name in {one.class_name for one in annotations}}
    undecided = connection.execute(
        f"SELECT id, class FROM annotations WHERE state IN {_UNDECIDED} AND {kind}"
    ).fetchall()
    for row in undecided:
        if labels or row["class"] in class_ids.values():
            step.remove("annotations", row["id"])
    decided = {
        tuple(row)
        for row in connection.execute(
            f"SELECT DISTINCT image, class FROM annotations WHERE state NOT IN {_UNDECIDED} AND {kind}"
        )
    }
    closed = {row[0] for row in connection.execute("SELECT id FROM images WHERE state = 'done'")}
    if labels:
        accepted = connection.execute(f"SELECT image FROM annotations WHERE state = 'accepted' AND {kind}")
        closed |= {row[0] for row in accepted}
    image_of = cache(lambda uri: index_of(connection, uri))
    num_left = 0
    for one in annotations:
        image, class_id = image_of(one.image), class_ids[one.class_name]
        if image in closed or (image, class_id) in decided:
            num_left += 1
        else:
            step.add("annotations", **columns_of(Edit(one), image=image, class_id=class_id))
    return num_left


def _is_label(annotation: Annotation) -> bool:
    return annotation.mask is None and annotation.box is None
