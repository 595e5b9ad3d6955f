"""A project as an image set with labels or masks: what heads are fitted on and measured with."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from foveal.annotate.creation import check_new_folder
from foveal.annotate.records import Record
from foveal.annotate.types import Annotation, Box
from foveal.errors import ProjectError
from foveal.files import publish_new, staged
from foveal.images.imageset import ImageSet
from foveal.images.masks import encode_ids

if TYPE_CHECKING:
    from foveal.annotate.reading import ProjectReader

BACKGROUND = "background"
MASKS = "masks"
CLASSES = "classes.txt"
_UNDECIDED = 255  # does not count, for heads
_MOST_CLASSES = 254


class Saved(NamedTuple):
    """What was saved: the number of images, how many of them are held out, and in words what was left out."""

    num_images: int
    num_held_out: int
    notes: tuple[str, ...]


def save_image_set(project: "ProjectReader", folder: Path, *, of: Literal["labels", "masks"]) -> Saved:
    """Write an image set; see `foveal.annotate.project.Project.save_image_set`."""
    check_new_folder(folder)
    notes: list[str] = []
    try:
        with staged(folder) as staging:
            if of == "labels":
                columns = {"label": _labels(project, notes)}
            else:
                columns = {"mask_uri": _write_masks(project, staging, notes)}
            rows = sorted(next(iter(columns.values())))
            if not rows:
                raise ProjectError(f"{project.folder} has no accepted {of} yet; accept some before they are saved")
            images, num_held_out = _chosen(project, rows, columns)
            images.save_in(staging)
            saved = publish_new(staging, folder)
    except OSError as error:
        raise ProjectError(f"{folder} cannot be written ({error}); check space and permissions") from error
    if not saved:
        raise ProjectError(f"{folder} was made by another process just now; choose another name")
    return Saved(len(images), num_held_out, tuple(notes))


def _chosen(
    project: "ProjectReader", rows: Sequence[int], columns: Mapping[str, Mapping[int, str]]
) -> tuple[ImageSet, int]:
    """Return the images at these rows with further columns, and the split where both parts have images."""
    chosen = project.image_set.subset(rows)
    held_out = [image.held_out for image in project.images(rows)]
    table = chosen.rows
    found = {name: [values[row] for row in rows] for name, values in columns.items()}
    if any(held_out) and not all(held_out):
        found["split"] = ["test" if out else "train" for out in held_out]
    for name, values in found.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, pa.array(values, pa.string()))
    return ImageSet(table, root=chosen.root), sum(held_out)


def _labels(project: "ProjectReader", notes: list[str]) -> dict[int, str]:
    found = project.labels()
    names: dict[int, set[str]] = defaultdict(set)
    for index, name in zip(found.index.tolist(), found.names, strict=True):
        names[index].add(name)
    several = sorted(index for index, here in names.items() if len(here) > 1)
    if several:
        [first] = project.images(several[:1])
        notes.append(
            f"{len(several)} images with several labels are left out, an image of a set has one: first {first.uri}"
        )
    return {index: next(iter(here)) for index, here in names.items() if len(here) == 1}


def _write_masks(project: "ProjectReader", folder: Path, notes: list[str]) -> dict[int, str]:
    marks: dict[int, list[Record]] = defaultdict(list)
    for record in project.annotations(states=("accepted", "proposed", "unsure")):
        if record.annotation.mask is not None or record.annotation.box is not None:
            marks[record.index].append(record)
    places = {uri: row for row, uri in enumerate(project.image_set.rows.column("uri").to_pylist())}
    done = {places[uri] for uri in project.done()}
    accepted = {index for index, here in marks.items() if any(one.annotation.state == "accepted" for one in here)}
    used = {one.annotation.class_name for here in marks.values() for one in here if one.annotation.state == "accepted"}
    classes = [one.name for one in project.classes() if one.name in used]
    if len(classes) > _MOST_CLASSES:
        raise ProjectError(f"{len(classes)} classes have masks; a mask file holds {_MOST_CLASSES}: merge some")
    if BACKGROUND in classes:
        raise ProjectError(f"a class is called '{BACKGROUND}', as what no mask covers is in the set; rename it")
    (folder / CLASSES).write_text("\n".join([BACKGROUND, *classes]) + "\n", encoding="utf-8")
    (folder / MASKS).mkdir()
    numbers = {name: place for place, name in enumerate(classes, 1)}
    rows = sorted(accepted | done) if accepted else []
    uris = {image.index: image.uri for image in project.images(rows)}
    sizes = project.sizes(list(uris.values()), missing=True)
    saved, lost = {}, []
    for row in rows:
        if uris[row] not in sizes:
            lost.append(uris[row])
            continue
        name = f"{MASKS}/{row:08d}.png"
        (folder / name).write_bytes(
            encode_ids(_painted([one.annotation for one in marks[row]], sizes[uris[row]], numbers))
        )
        saved[row] = name
    if lost:
        notes.append(f"{len(lost)} images that cannot be read are left out: first {lost[0]}")
    return saved


def _painted(marks: Sequence[Annotation], size: tuple[int, int], numbers: Mapping[str, int]) -> np.ndarray:
    """Return class numbers (H, W): the largest first, so that the small are seen; undecided ones do not count."""
    width, height = size
    ids = np.zeros((height, width), np.uint8)
    covered = [(one, _pixels(one, width, height)) for one in marks]
    for one, pixels in sorted(covered, key=lambda pair: -int(pair[1].sum())):
        if one.state == "accepted":
            ids[pixels] = numbers[one.class_name]
    decided = ids > 0
    for one, pixels in covered:
        if one.state != "accepted":
            ids[pixels & ~decided] = _UNDECIDED
    return ids


def _pixels(annotation: Annotation, width: int, height: int) -> np.ndarray:
    if annotation.mask is not None:
        return annotation.mask.pixels()
    box = annotation.box or Box(0, 0, 0, 0)
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    return ((rows >= box.y) & (rows < box.y + box.height))[:, None] & (
        (columns >= box.x) & (columns < box.x + box.width)
    )
