"""COCO: one JSON file of pictures, categories and annotations, masks as runs or polygons.

Source: the public description of the format, cocodataset.org.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveal.annotate.formats.attributes import kept_in, left_out, others_in, restored
from foveal.annotate.formats.documents import field, number, read_json
from foveal.annotate.formats.found import Found
from foveal.annotate.formats.pictures import Pictures
from foveal.annotate.formats.polygons import extent_of, mask_of, outline_notes, rings_of
from foveal.annotate.formats.runs import check_mask, check_runs
from foveal.annotate.types import AnnotatedImage, AnnotatedSet, Annotation, Box, Mask
from foveal.errors import FovealError
from foveal.evaluate.video_metrics import region_similarity

PICTURES = "images/default"
_FILE = Path("annotations/instances_default.json")


def write(annotated: AnnotatedSet, folder: Path, *, polygons: bool = False) -> list[str]:
    """Write annotations/instances_default.json; labels of whole pictures have no place in it.

    State, source and track are kept among the attributes of an annotation, as CVAT writes its own; the score as in
    files of results.

    Args:
        annotated: a checked set.
        folder: to write into.
        polygons: masks as polygons instead of runs.

    Returns:
        What was left out or changed.
    """
    numbers = {image.uri: place + 1 for place, image in enumerate(annotated.images)}
    categories = {name: place + 1 for place, name in enumerate(annotated.classes)}
    marks: list[dict[str, Any]] = []
    likeness: list[float] = []
    whole = empty = 0
    for one in annotated.annotations:
        if one.mask is None and one.box is None:
            whole += 1
            continue
        if polygons and one.mask is not None and one.mask.box() is None:
            empty += 1
            continue
        mark: dict[str, Any] = {
            "id": len(marks) + 1,
            "image_id": numbers[one.image],
            "category_id": categories[one.class_name],
        }
        mark |= _shape(one, polygons, likeness) | {"iscrowd": 0}
        if one.score is not None:
            mark["score"] = one.score
        marks.append(mark | ({"attributes": attributes} if (attributes := kept_in(one)) else {}))
    content = {
        "images": [
            {"id": numbers[image.uri], "file_name": image.uri, "width": image.width, "height": image.height}
            for image in annotated.images
        ],
        "categories": [{"id": categories[name], "name": name, "supercategory": ""} for name in annotated.classes],
        "annotations": marks,
    }
    (folder / _FILE).parent.mkdir()
    (folder / _FILE).write_text(json.dumps(content, allow_nan=False) + "\n")
    notes = [f"{whole} labels of whole pictures are left out: COCO has no place for them"] if whole else []
    notes += [f"{empty} empty masks are left out: they have no outline"] if empty else []
    return notes + outline_notes(likeness)


def _shape(one: Annotation, polygons: bool, likeness: list[float]) -> dict[str, Any]:
    """Return segmentation, area and box; the likeness of polygons to their masks is appended."""
    if one.mask is None:
        assert one.box is not None
        return {"segmentation": [], "area": one.box.width * one.box.height, "bbox": list(one.box)}
    pixels = one.mask.pixels()
    box = one.box or extent_of(pixels) or Box(0, 0, 0, 0)
    shape = {"area": int(np.count_nonzero(pixels)), "bbox": list(box)}
    if not polygons:
        runs = {"size": [one.mask.height, one.mask.width], "counts": one.mask.counts.decode("ascii")}
        return {"segmentation": runs, **shape}
    rings = rings_of(pixels)
    drawn = mask_of(rings, *pixels.shape, where=one.image).pixels() if rings else np.zeros_like(pixels)
    likeness.append(region_similarity(pixels, drawn))
    return {"segmentation": [ring.ravel().tolist() for ring in rings], **shape}


def read(path: Path, pictures: Pictures) -> Found:
    """Read a file of instances, or the only one of a folder.

    Polygons become the pixels that COCO's own code draws. Crowds are left out: they show several things. A box that
    only repeats the extent of its mask is not kept.
    """
    path = _file(path)
    content = read_json(path)
    categories, images = _categories(content, path), _images(content, path, pictures)
    counts: Counter[str] = Counter()
    attributes: Counter[str] = Counter()
    found, seen = [], set()
    for place, mark in enumerate(field(content, "annotations", list, where=str(path))):
        where = f"{path}: annotation {mark.get('id', place) if isinstance(mark, Mapping) else place}"
        if (number_ := field(mark, "id", (int, str), where=where)) in seen:
            raise FovealError(f"{where}: its id {number_} is used twice; export it again")
        seen.add(number_)
        if "segments_info" in mark:
            raise FovealError(f"{path} is of panoptic pictures; give the file of instances")
        category = field(mark, "category_id", (int, str), where=where)
        image_id = field(mark, "image_id", (int, str), where=where)
        if category not in categories or image_id not in images:
            raise FovealError(f"{where} is of category {category} and picture {image_id}, of which one is not listed")
        if mark.get("iscrowd"):
            counts["crowd"] += 1
        elif (image := images[image_id]) is not None:
            found.append(_annotation(mark, image, categories[category], counts, where=where))
            attributes.update(others_in(mark.get("attributes")))
    known = tuple(image for image in images.values() if image is not None)
    notes = (*_notes(counts), *left_out(attributes))
    return Found(AnnotatedSet(tuple(categories.values()), known, tuple(found)), notes)


def _notes(counts: Counter[str]) -> tuple[str, ...]:
    texts = {
        "crowd": "crowds are left out: they show several things",
        "short": "polygons of fewer than 3 points are left out",
        "keypoints": "annotations have keypoints, which are left out",
        "nothing": "annotations have neither segmentation nor box, and are taken for labels of the whole picture",
    }
    return tuple(f"{counts[kind]} {text}" for kind, text in texts.items() if counts[kind])


def _annotation(
    mark: Mapping[str, Any], image: AnnotatedImage, class_name: str, counts: Counter[str], *, where: str
) -> Annotation:
    mask = _mask(mark.get("segmentation"), image, counts, where=where)
    box = _box(mark.get("bbox"), where=where)
    if mask is not None and box == (extent_of(mask.pixels()) or Box(0, 0, 0, 0)):
        box = None
    counts["keypoints"] += bool(mark.get("keypoints"))
    counts["nothing"] += mask is None and box is None
    score = mark.get("score")
    return restored(
        Annotation(
            image.uri,
            class_name,
            mask,
            box,
            source="imported",
            score=None if score is None else number(score, where=where),
        ),
        mark.get("attributes"),
    )


def _mask(segmentation: Any, image: AnnotatedImage, counts: Counter[str], *, where: str) -> Mask | None:
    if isinstance(segmentation, Mapping):
        return _mask_of_runs(segmentation, where=where)
    if not segmentation:
        return None
    polygons = []
    for points in segmentation if isinstance(segmentation, Sequence) else [None]:
        if not isinstance(points, Sequence) or len(points) % 2:
            raise FovealError(f"{where}: a polygon that is no list of x and y; export it again")
        polygons.append(np.array([number(value, where=where) for value in points]).reshape(-1, 2))
    whole = [points for points in polygons if len(points) >= 3]
    counts["short"] += len(polygons) - len(whole)
    return mask_of(whole, image.height, image.width, where=where) if whole else None


def _mask_of_runs(runs: Mapping[str, Any], *, where: str) -> Mask:
    size = field(runs, "size", list, where=where)
    if len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise FovealError(f"{where}: run lengths of the size {str(size)[:40]}; it must be height and width")
    counts = field(runs, "counts", (str, list), where=where)
    height, width = size
    if isinstance(counts, str):
        if not counts.isascii():
            raise FovealError(f"{where}: run lengths that are no COCO coding; it is damaged, export it again")
        mask = Mask(height, width, counts.encode("ascii"))
        check_mask(mask, where=where)
        return mask
    try:
        lengths = np.array(counts, np.int64).reshape(len(counts))
    except (ValueError, TypeError, OverflowError) as error:
        raise FovealError(f"{where}: run lengths that are no whole numbers ({error}); export it again") from error
    check_runs(lengths, height, width, where=where)
    from pycocotools import mask as coco

    return Mask(height, width, coco.frPyObjects({"size": size, "counts": lengths.tolist()}, height, width)["counts"])


def _box(values: Any, *, where: str) -> Box | None:
    if not values:
        return None
    if not isinstance(values, Sequence) or len(values) != 4:
        raise FovealError(f"{where}: a box {str(values)[:40]!r}; it must be x, y, width and height")
    return Box(*(number(value, where=where) for value in values))


def _file(path: Path) -> Path:
    """Return the file of instances in a folder, or the path itself."""
    if not path.is_dir():
        return path
    found = [*sorted((path / "annotations").glob("instances_*.json")), *path.glob("_annotations.coco.json")]
    if len(found) != 1:
        seen = ", ".join(str(one.relative_to(path)) for one in found) or "none"
        raise FovealError(f"{path}: {seen} of annotations/instances_*.json; give the file itself")
    return found[0]


def _categories(content: Any, path: Path) -> dict[Any, str]:
    names: dict[Any, str] = {}
    for place, one in enumerate(field(content, "categories", list, where=str(path))):
        where = f"{path}: category {one.get('id', place) if isinstance(one, Mapping) else place}"
        if (found := field(one, "id", (int, str), where=where)) in names:
            raise FovealError(f"{where}: its id {found} is used twice; export it again")
        names[found] = field(one, "name", str, where=where)
    return names


def _images(content: Any, path: Path, pictures: Pictures) -> dict[Any, AnnotatedImage | None]:
    images: dict[Any, AnnotatedImage | None] = {}
    for place, one in enumerate(field(content, "images", list, where=str(path))):
        where = f"{path}: picture {one.get('id', place) if isinstance(one, Mapping) else place}"
        if (found := field(one, "id", (int, str), where=where)) in images:
            raise FovealError(f"{where}: its id {found} is used twice; export it again")
        width, height = (field(one, side, int, where=where) for side in ("width", "height"))
        images[found] = pictures.find(field(one, "file_name", str, where=where), width, height)
    return images
