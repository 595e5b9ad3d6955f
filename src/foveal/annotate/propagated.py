"""What was propagated, written with what it came from: into a project, a table or the files of another tool."""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from foveal.annotate.creation import DATABASE, check_new_folder
from foveal.annotate.formats import WRITTEN, write_annotations
from foveal.annotate.given import Given
from foveal.annotate.project import Project
from foveal.annotate.types import AnnotatedImage, AnnotatedSet, Annotation
from foveal.errors import BadImageError, FovealError, ProjectError, nearest
from foveal.features.extract import Model
from foveal.features.origin import described
from foveal.features.store import FeatureStore
from foveal.files import write_atomically
from foveal.images.decode import read_size
from foveal.images.imageset import ImageSet

PROJECT, TABLE = "project", "csv"


def check_target(out: Path, to: str) -> None:
    """Refuse what cannot be written, before anything is computed.

    Args:
        out: a new folder, a file for a table, or a project.
        to: "project", "csv" or one of `foveal.annotate.formats.WRITTEN`.

    Raises:
        FovealError: another format, or a folder or file in use.
    """
    known = (PROJECT, TABLE, *WRITTEN)
    if to not in known:
        raise FovealError(f"--to {to} is not known{nearest(to, known)}; choose {', '.join(known)}")
    if to == TABLE:
        if out.is_dir():
            raise FovealError(f"{out} is a folder; give a file, such as {out / 'labels.csv'}")
        if out.exists():
            raise FovealError(f"{out} exists; choose another place, or remove it first")
    elif to != PROJECT or not (out / DATABASE).is_file():
        check_new_folder(out)
    parent = next(path for path in Path(os.path.abspath(out)).parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise FovealError(f"{parent} cannot be written to; choose another place than {out}")


def check_project(out: Path, images: ImageSet, given: Given, *, model: Model | FeatureStore | None = None) -> None:
    """Refuse a project that is there and cannot take what will be found, before anything is computed.

    Args:
        out: where it may be.
        images: the set.
        given: what is known.
        model: which will propose, or a store of its features.

    Raises:
        ProjectError: it was made with another model, or lacks images of the set.
    """
    if not (out / DATABASE).is_file():
        return
    with Project.open(out, model=model) as project:
        if given.model and project.model and given.model["sha256"] != project.model["sha256"]:
            raise ProjectError(
                f"{out} was made with the model {described(project.model)}, and what is known with "
                f"{described(given.model)}; make another project"
            )
        if unknown := project.unknown(images.rows.column("uri").to_pylist()):
            raise ProjectError(
                f"{out} lacks {len(unknown)} of the {len(images)} images, first {unknown[0]}; its uris are like "
                f"{project.page(0, 1)[0].uri}: give its images, or make another project"
            )


def write_project(
    found: Sequence[Annotation],
    given: Given,
    images: ImageSet,
    out: Path,
    *,
    model: Model | FeatureStore | None = None,
) -> int:
    """Add what was given and propose what was found; the project is made where there is none.

    Where people have decided in the project already, that stays, and nothing is added to it.

    Args:
        found: proposals.
        given: what is known.
        images: the set.
        out: the project.
        model: which found them, or a store of its features; the project keeps it.

    Returns:
        How many proposals are left out, since people have decided already.

    Raises:
        ProjectError: a project of another model or of other images, or it cannot be written.
    """
    there = (out / DATABASE).is_file()
    with Project.open(out, model=model) if there else Project.create(out, images, model=model) as project:
        if model is not None:
            project.keep_model(model)
        if project.folder != given.project:
            project.add(_undecided(project, given))
        return project.propose(found, words=f"propagate {given.kind}").left


def _undecided(project: Project, given: Given) -> AnnotatedSet:
    """Return what was given of images, or of masks of a class on an image, of which the project holds nothing."""
    masks = given.kind == "masks"
    records = [one.annotation for one in project.annotations(states=("accepted", "rejected"))]
    decided = {
        (one.image, one.class_name if masks else "")
        for one in records
        if masks == (one.mask is not None or one.box is not None) and (masks or one.state == "accepted")
    }
    kept = [one for one in given.annotated.annotations if (one.image, one.class_name if masks else "") not in decided]
    return replace(given.annotated, annotations=tuple(kept))


def write_files(found: Sequence[Annotation], given: Given, images: ImageSet, out: Path, *, to: str) -> list[str]:
    """Write what was given and what is proposed for another tool; see `write_annotations`."""
    every = [*given.annotated.annotations, *(one for one in found if one.state == "proposed")]
    pictures = {image.uri: image for image in given.annotated.images if image.width}
    rows = {uri: row for row, uri in enumerate(images.rows.column("uri").to_pylist())}
    for one in every:
        if one.image not in pictures:
            pictures[one.image] = _picture(images, rows[one.image], one)
    annotated = AnnotatedSet(given.annotated.classes, tuple(pictures.values()), tuple(every))
    notes = write_annotations(annotated, out, format=to, states=("accepted", "proposed"))
    if num_unsure := sum(one.state == "unsure" for one in found):
        notes.append(f"{num_unsure} unsure answers are left out; a project holds them")
    return notes


def write_table(found: Sequence[Annotation], given: Given, out: Path) -> None:
    """Write labels as CSV: uri, label, state and score; those that were given first."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["uri", "label", "state", "score"])
    for one in (*given.annotated.annotations, *found):
        table.writerow([one.image, one.class_name, one.state, "" if one.score is None else f"{one.score:.4f}"])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text.getvalue())
    except OSError as error:
        raise FovealError(f"{out} cannot be written ({error}); check space and permissions") from error


def _picture(images: ImageSet, row: int, annotation: Annotation) -> AnnotatedImage:
    if annotation.mask is not None:
        return AnnotatedImage(annotation.image, annotation.mask.width, annotation.mask.height)
    try:
        return AnnotatedImage(annotation.image, *read_size(images.read(row)))
    except BadImageError as error:
        raise FovealError(f"{annotation.image} cannot be read: {error}; repair it") from error
