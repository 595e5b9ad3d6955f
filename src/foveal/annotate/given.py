"""What people have said of an image set already, wherever it is kept: what is propagated from."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from foveal.annotate.creation import DATABASE
from foveal.annotate.formats import read_annotations
from foveal.annotate.project import Project
from foveal.annotate.types import AnnotatedImage, AnnotatedSet, Annotation, Mask
from foveal.errors import BadImageError, FovealError
from foveal.images.decode import read_size
from foveal.images.imageset import CARD_NAME, ImageSet
from foveal.tasks.samples import read_ids

Kind = Literal["labels", "masks"]

_TABLES = (".csv", ".parquet")
_NAMES = "classes.txt"
_IGNORED = 255


class Given(NamedTuple):
    """Accepted labels or masks of some images.

    Attributes:
        kind: which of the two.
        annotated: with images that are in the set; those without a mask show nothing of what is looked for.
        complete: all that is to be said of each image was said, so that what no mask covers is none of the classes.
        model: name and sha256 of the model that the labels were made with, where a project names one.
        project: its folder, where it was one.
        notes: what was left out, a sentence each.
    """

    kind: Kind
    annotated: AnnotatedSet
    complete: frozenset[str]
    model: dict[str, str] | None = None
    project: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> dict[str, str]:
        """Class names by uri."""
        return {one.image: one.class_name for one in self.annotated.annotations}


def read_given(source: str | Path, images: ImageSet, *, kind: Kind | None = None, format: str | None = None) -> Given:
    """Read labels or masks of images of a set.

    Args:
        source: a CSV or Parquet file with the columns uri and label; a saved image set, of which some images have
            labels; a folder of mask PNGs, named as the pictures are (0 is background, 255 does not count, other numbers
            are lines of classes.txt, from 0; where all are 0 and 255, 255 is the class named as the folder); a file of
            `foveal.annotate.formats`; or a project, of which what is accepted counts.
        images: the set.
        kind: which, where the source has both; None is the one that there is.
        format: of a file of annotations, where it does not show it.

    Raises:
        FovealError: nothing of the kind, images that the set lacks, two labels of an image, masks of another size than
            their picture, or a file that is damaged.
    """
    source = Path(source)
    if kind is not None and kind not in get_args(Kind):
        raise FovealError(f"kind='{kind}'; choose {' or '.join(get_args(Kind))}")
    if not source.exists():
        raise FovealError(f"{source} does not exist; give labels, masks, a file of annotations or a project")
    if source.suffix.lower() == ".png":
        raise FovealError(f"{source} is one mask; give the folder that it is in, with masks named as their pictures")
    if (source / DATABASE).is_file():
        return _of_project(source, images, kind)
    if source.suffix.lower() in _TABLES or (source / CARD_NAME).is_file():
        found = _of_table(source)
    elif format is None and source.is_dir() and any(source.rglob("*.png")) and not any(source.glob("*.json")):
        found = _of_masks(source, images)
    else:
        annotated, notes = read_annotations(source, format=format, images=images)
        return _chosen(annotated, images, kind, where=str(source), notes=notes)
    return _chosen(found, images, kind, where=str(source))


def _of_project(source: Path, images: ImageSet, kind: Kind | None) -> Given:
    with Project.open(source) as project:
        found = _chosen(project.to_set(), images, kind, where=str(source))
        return found._replace(model=project.model, project=project.folder, complete=frozenset(project.done()))


def _chosen(
    annotated: AnnotatedSet, images: ImageSet, kind: Kind | None, *, where: str, notes: Iterable[str] = ()
) -> Given:
    """Keep the accepted annotations of one kind, of images that the set has."""
    accepted = [one for one in annotated.annotations if one.state == "accepted"]
    of_kind: dict[Kind, list[Annotation]] = {
        "labels": [one for one in accepted if one.mask is None and one.box is None],
        "masks": [one for one in accepted if one.mask is not None],
    }
    num_boxes = len(accepted) - len(of_kind["labels"]) - len(of_kind["masks"])
    there: list[Kind] = [name for name in get_args(Kind) if of_kind[name]]
    if kind is None and len(there) > 1:
        raise FovealError(f"{where} has labels and masks; say which: --of labels or --of masks")
    chosen = kind or (there[0] if there else None)
    if chosen is None or chosen not in there:
        boxes = f", only {num_boxes} boxes" if num_boxes and not there else ""
        raise FovealError(
            f"{where} has no accepted {chosen or 'labels or masks'}{boxes}; label some images, or mask some"
        )
    uris = images.rows.column("uri").to_pylist()
    known = set(uris)
    if unknown := sorted({one.image for one in of_kind[chosen]} - known):
        raise FovealError(
            f"the image set lacks {len(unknown)} images of {where}, first {unknown[0]}; its uris are like {uris[0]}"
        )
    if chosen == "labels":
        _check_single(of_kind["labels"], where)
    names = {one.class_name for one in of_kind[chosen]}
    classes = tuple(name for name in annotated.classes if name in names)
    pictures = tuple(one for one in annotated.images if one.uri in known)
    told = tuple(notes) + ((f"{num_boxes} boxes are left out; boxes are not propagated",) if num_boxes else ())
    return Given(
        chosen,
        AnnotatedSet(classes, pictures, tuple(of_kind[chosen])),
        frozenset(one.uri for one in pictures),
        notes=told,
    )


def _check_single(labels: list[Annotation], where: str) -> None:
    """Refuse an image with two labels."""
    found: dict[str, str] = {}
    for one in labels:
        if found.setdefault(one.image, one.class_name) != one.class_name:
            raise FovealError(
                f"{one.image} has two labels in {where}, '{found[one.image]}' and '{one.class_name}'; "
                "an image that teaches has one"
            )


def _of_table(path: Path) -> AnnotatedSet:
    """Read uri and label of a table; rows without a label say nothing."""
    try:
        if (path / CARD_NAME).is_file():
            rows = ImageSet.open(path).rows
        elif path.suffix.lower() == ".parquet":
            rows = pq.read_table(path)
        else:
            text = pa.csv.ConvertOptions(column_types={"uri": pa.string(), "label": pa.string()})
            rows = pa.csv.read_csv(path, convert_options=text)
        if missing := [name for name in ("uri", "label") if name not in rows.column_names]:
            raise FovealError(
                f"{path} lacks the column {missing[0]}; it has {', '.join(rows.column_names) or 'none'}: "
                "give the columns uri and label"
            )
        columns = [rows.column(name).cast(pa.string()).to_pylist() for name in ("uri", "label")]
    except (OSError, pa.ArrowException) as error:
        raise FovealError(f"{path} cannot be read as a table ({error}); give the columns uri and label") from error
    labels = [(uri, label.strip()) for uri, label in zip(*columns, strict=True) if uri and label and label.strip()]
    annotations = tuple(Annotation(uri, label, source="imported") for uri, label in labels)
    uris = dict.fromkeys(uri for uri, _ in labels)
    return AnnotatedSet(
        tuple(sorted({label for _, label in labels})), tuple(AnnotatedImage(uri, 0, 0) for uri in uris), annotations
    )


def _of_masks(folder: Path, images: ImageSet) -> AnnotatedSet:
    """Read a folder of masks, each beside the picture that has its name."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, uri in enumerate(images.rows.column("uri").to_pylist()):
        rows[str(Path(uri).with_suffix(""))].append(row)
    masks: list[tuple[AnnotatedImage, dict[int, Mask]]] = []
    for path in sorted(folder.rglob("*.png")):
        picture, ids = _picture(images, _masked_row(path, rows, images, folder)), read_ids(path)
        if ids.shape != (picture.height, picture.width):
            raise FovealError(
                f"{path} is of {ids.shape[1]} x {ids.shape[0]} pixels, and {picture.uri} of {picture.width} x "
                f"{picture.height}; give masks of the size of their pictures"
            )
        masks.append((picture, {int(number): Mask.of(ids == number) for number in np.unique(ids) if number}))
    names = _names(folder, {number for _, here in masks for number in here})
    annotations = tuple(
        Annotation(picture.uri, name, mask=here[number], source="imported")
        for picture, here in masks
        for number, name in names.items()
        if number in here
    )
    return AnnotatedSet(tuple(names.values()), tuple(picture for picture, _ in masks), annotations)


def _masked_row(path: Path, rows: Mapping[str, Sequence[int]], images: ImageSet, folder: Path) -> int:
    """Return the row of the one picture that has the name of a mask."""
    found = rows.get(str(path.relative_to(folder).with_suffix("")), ())
    if not found:
        raise FovealError(
            f"{path} masks no picture of the image set, whose names are like {next(iter(rows))}; "
            "give each mask the name of its picture"
        )
    if len(found) > 1:
        raise FovealError(
            f"{path} masks {' or '.join(images.uri(row) for row in found)}; give pictures that have masks names "
            "of their own"
        )
    return found[0]


def _picture(images: ImageSet, row: int) -> AnnotatedImage:
    try:
        return AnnotatedImage(images.uri(row), *read_size(images.read(row)))
    except BadImageError as error:
        raise FovealError(f"{images.uri(row)}, which has a mask, cannot be read: {error}; repair it") from error


def _names(folder: Path, numbers: set[int]) -> dict[int, str]:
    """Return the names of the classes in masks by their numbers."""
    shown = sorted(numbers - {0})
    if shown == [_IGNORED]:
        return {_IGNORED: folder.resolve().name}
    shown = [number for number in shown if number != _IGNORED]
    if not (folder / _NAMES).is_file():
        return {number: str(number) for number in shown}
    try:
        names = [name.strip() for name in (folder / _NAMES).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise FovealError(f"{folder / _NAMES} cannot be read ({error}); give names in UTF-8, one a line") from error
    if shown and shown[-1] >= len(names):
        raise FovealError(f"a mask holds {shown[-1]}, and {folder / _NAMES} names 0 to {len(names) - 1}; name all")
    if nameless := [number for number in shown if not names[number]]:
        raise FovealError(
            f"a mask holds {nameless[0]}, and line {nameless[0] + 1} of {folder / _NAMES} is empty; name it"
        )
    return {number: names[number] for number in shown}
