"""`foveal annotations`: annotations from the files of one tool to those of another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, get_args

import typer

from foveal.errors import FovealError

_PROJECT = "project"


def annotations(
    source: Annotated[
        Path,
        typer.Argument(metavar="IN", help="A project, or files of COCO, Label Studio, CVAT or FiftyOne."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder; with --to project one that is there.")],
    to: Annotated[
        str, typer.Option(help="coco, label-studio, cvat, fiftyone, yolo, yolo-seg, voc; or project, which adds to it.")
    ],
    source_format: Annotated[str | None, typer.Option("--from", help="The format of IN, if not evident.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="The pictures: names are found among them, and sizes compared with theirs.")
    ] = None,
    copy_images: Annotated[bool, typer.Option("--copy-images", help="Copy the pictures of --images into OUT.")] = False,
    states: Annotated[
        str | None,
        typer.Option(
            help="Which annotations: accepted, proposed, unsure, rejected, by commas, or all.  "
            "[default: accepted; to a project all]"
        ),
    ] = None,
    polygons: Annotated[bool, typer.Option("--polygons", help="COCO: masks as polygons instead of runs.")] = False,
    fields: Annotated[str | None, typer.Option(help="FiftyOne: the fields to read, by commas.")] = None,
) -> None:
    """Write annotations in the format of another tool, and say what that cannot hold; see docs/formats.md."""
    from foveal.annotate.creation import DATABASE
    from foveal.annotate.formats import in_states, read_annotations, write_annotations
    from foveal.annotate.project import Project
    from foveal.annotate.types import State
    from foveal.images.imageset import ImageSet

    of_project = (source / DATABASE).is_file()
    _check_options(
        {
            f"--to {_PROJECT}": {"--copy-images": copy_images, "--polygons": polygons} if to == _PROJECT else {},
            "IN, a project": {"--from": source_format, "--fields": fields} if of_project else {},
        }
    )
    if copy_images and images is None and not of_project:
        raise FovealError("--copy-images copies those of --images; name the image set too")
    pictures = ImageSet.open(images) if images is not None else None
    notes: list[str] = []
    wanted = get_args(State) if states == "all" else [name.strip() for name in (states or "accepted").split(",")]
    if of_project:
        with Project.open(source) as project:
            annotated = project.to_set(states=get_args(State))
            pictures = pictures or (project.image_set if copy_images else None)
    else:
        chosen = [name.strip() for name in (fields or "").split(",") if name.strip()]
        annotated, read_notes = read_annotations(source, format=source_format, images=pictures, fields=chosen)
        notes += read_notes
    if to == _PROJECT:
        if states is not None:
            annotated, left_notes = in_states(annotated, wanted)
            notes += left_notes
        with Project.open(out) as project:
            num_there = project.add(annotated).left
        there = f"; {num_there} were there already" if num_there else ""
        typer.echo(f"added {len(annotated.annotations) - num_there} annotations to {out}{there}")
    else:
        notes += write_annotations(
            annotated, out, format=to, states=wanted, polygons=polygons, images=pictures if copy_images else None
        )
        typer.echo(f"wrote {out}: {len(annotated.images)} pictures, {len(annotated.classes)} classes")
    for text in notes:
        typer.echo(f"note: {text}")


def _check_options(without_effect: Mapping[str, Mapping[str, object]]) -> None:
    """Refuse options that were given and have no effect."""
    for where, options in without_effect.items():
        if wrong := [option for option, given in options.items() if given]:
            raise FovealError(f"{wrong[0]} has no effect on {where}; leave it out")
