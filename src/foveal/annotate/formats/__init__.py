"""Annotations in the files of other tools: in and out, whole or not at all, with what a format could not hold."""

import importlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import get_args

from foveal.annotate.formats.check import check_set
from foveal.annotate.formats.found import Found
from foveal.annotate.formats.pictures import Pictures
from foveal.annotate.types import AnnotatedSet, State
from foveal.errors import BadImageError, FovealError, nearest
from foveal.files import publish_new, staged
from foveal.images.imageset import ImageSet

# The module of each format; where the same module writes several, it is told which.
READ = {"coco": "coco", "label-studio": "label_studio", "cvat": "cvat", "fiftyone": "fiftyone_data"}
WRITTEN = {**READ, "yolo": "yolo", "yolo-seg": "yolo", "voc": "voc"}

_STATELESS = ("yolo", "yolo-seg", "voc")  # what is written there is true


def read_annotations(
    path: str | Path, *, format: str | None = None, images: ImageSet | None = None, fields: Collection[str] = ()
) -> Found:
    """Read annotations from a file or folder of another tool.

    Args:
        path: COCO: a JSON file. Label Studio: its JSON export. CVAT: annotations.xml. FiftyOne: an exported folder.
            Also the folder around such a file.
        format: one of `READ`; None looks at the file.
        images: the pictures that were annotated. Then names are those of its uris (see `Pictures`), and sizes those of
            the pictures. Without it names in the file are the uris.
        fields: of FiftyOne's samples, where several hold annotations.

    Returns:
        The set; what was no annotation of ours is in the notes.

    Raises:
        FovealError: damaged, contradictory or dangerous content; it is named.
    """
    path = Path(path)
    name = format or _format_of(path)
    module = _module(name, READ, "read")
    if fields and name != "fiftyone":
        raise FovealError(f"fields are of FiftyOne's samples, and {name} has none; leave them out")
    pictures = Pictures(images)
    found: Found = module.read(path, pictures, fields) if name == "fiftyone" else module.read(path, pictures)
    pictures.check_found()
    check_set(found.annotated, where=str(path))
    return found


def write_annotations(
    annotated: AnnotatedSet,
    out: str | Path,
    *,
    format: str,
    states: Sequence[str] = ("accepted",),
    images: ImageSet | None = None,
    polygons: bool = False,
) -> list[str]:
    """Write annotations for another tool, as a new folder.

    Args:
        annotated: pictures and what is said of them.
        out: the folder; nothing may be there yet.
        format: one of `WRITTEN`.
        states: annotations in other states are left out: most tools take all they read for true.
        images: where given, the pictures are copied to where the format wants them.
        polygons: COCO: masks as polygons instead of runs, for tools that read nothing else.

    Returns:
        What was left out or changed, a sentence each.

    Raises:
        FovealError: the set contradicts itself, the folder is in use, a picture cannot be read, or the disk is full;
            nothing is left behind.
    """
    out = Path(out)
    module = _module(format, WRITTEN, "written")
    if polygons and format != "coco":
        raise FovealError(f"polygons=True is COCO's choice, and {format} has none; leave it out")
    _check_target(out)
    check_set(annotated, where="the annotations")
    annotated, notes = _with_sizes(annotated)
    states = [state for state in states if state != "rejected" or format not in _STATELESS]
    kept, more = in_states(annotated, states)
    notes += more
    if format in _STATELESS and (undecided := sum(one.state != "accepted" for one in kept.annotations)):
        notes.append(f"{undecided} annotations are written that nobody has accepted: {format} cannot tell them apart")
    try:
        with staged(out) as staging:
            notes += module.write(kept, staging, **_options(format, polygons))
            if images is not None:
                _copy(kept, images, staging / module.PICTURES)
            if not publish_new(staging, out):
                raise FovealError(f"{out} was written by another process meanwhile; choose another place")
    except OSError as error:
        raise FovealError(f"{out} cannot be written ({error}); free space or choose another place") from error
    return notes


def _module(name: str, known: dict[str, str], verb: str) -> ModuleType:
    if name not in known:
        raise FovealError(
            f"{name!r} is no format that can be {verb}{nearest(name, known)}; allowed are {', '.join(known)}"
        )
    return importlib.import_module(f"{__name__}.{known[name]}")


def _options(format: str, polygons: bool) -> dict[str, bool]:
    if format == "coco":
        return {"polygons": polygons}
    return {"masks": format == "yolo-seg"} if format.startswith("yolo") else {}


def _format_of(path: Path) -> str:
    """Return the format that a path looks like."""
    if not path.exists():
        raise FovealError(f"{path} does not exist; give a file or folder of annotations")
    if (path.is_file() and path.suffix.lower() == ".xml") or (path / "annotations.xml").is_file():
        return "cvat"
    if (path / "samples.json").is_file():
        return "fiftyone"
    if path.is_file() and path.suffix.lower() == ".json":
        with path.open("rb") as file:
            start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
        return "label-studio" if start.startswith(b"[") else "coco"
    if (path / "tasks.json").is_file():
        return "label-studio"
    if (path / "annotations").is_dir() or (path / "_annotations.coco.json").is_file():
        return "coco"
    raise FovealError(f"{path} looks like no known format; name it: {', '.join(READ)}")


def _check_target(out: Path) -> None:
    if out.name in ("", ".."):
        raise FovealError(f"{out} has no name to give to a new folder; name one, such as {out / 'annotations'}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FovealError(f"{out} exists; choose another place, or remove it first")


def _with_sizes(annotated: AnnotatedSet) -> tuple[AnnotatedSet, list[str]]:
    """Leave out pictures of which a project knows no size, since they cannot be read any more."""
    gone = [image.uri for image in annotated.images if min(image.width, image.height) < 1]
    if not gone:
        return annotated, []
    images = tuple(image for image in annotated.images if image.uri not in set(gone))
    kept = tuple(one for one in annotated.annotations if one.image not in set(gone))
    num = len(annotated.annotations) - len(kept)
    note = f"{len(gone)} pictures cannot be read any more, and are left out with {num} annotations, first {gone[0]}"
    return replace(annotated, images=images, annotations=kept), [note]


def in_states(annotated: AnnotatedSet, states: Sequence[str]) -> tuple[AnnotatedSet, list[str]]:
    """Return a set with its annotations in some states, and in words how many are left out."""
    for state in states:
        if state not in get_args(State):
            raise FovealError(
                f"{state!r} is no state{nearest(state, get_args(State))}; allowed: {', '.join(get_args(State))}"
            )
    kept = tuple(one for one in annotated.annotations if one.state in states)
    left = len(annotated.annotations) - len(kept)
    notes = [f"{left} annotations are left out, which are not {' or '.join(states)}"] if left else []
    return replace(annotated, annotations=kept), notes


def _copy(annotated: AnnotatedSet, images: ImageSet, folder: Path) -> None:
    """Copy pictures to where their uris say, below a folder."""
    places = {uri: index for index, uri in enumerate(images.rows.column("uri").to_pylist())}
    for image in annotated.images:
        if image.uri not in places:
            raise FovealError(f"the image set lacks {image.uri}, which is annotated; give the set that was annotated")
        if "#" in image.uri:
            raise FovealError(f"{image.uri} is in a shard and has no name as a file; unpack the shards first")
        try:
            data = images.read(places[image.uri])
        except BadImageError as error:
            raise FovealError(f"{image.uri} cannot be read: {error}; repair it") from error
        path = folder / image.uri
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
