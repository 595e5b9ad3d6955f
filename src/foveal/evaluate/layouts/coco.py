"""COCO annotations as masks: instances as polygons and run lengths, and panoptic pictures with their segments.

Source: the public description of the format, cocodataset.org. Shapes: H W pixels.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foveal.errors import BadImageError, FovealError, ImageSetError
from foveal.images.preprocess import to_rgb_array
from foveal.tasks.samples import Masks, Pair
from foveal.tasks.segment import IGNORED

_KINDS = ("panoptic", "instances")  # the first that is there
_TRAIN, _TEST = ("train",), ("val", "test")


class Part(NamedTuple):
    """Pictures, and what reads their masks."""

    pairs: list[Pair]
    reader: "CocoMasks"


class Picture(NamedTuple):
    """What a file says of one picture.

    Attributes:
        shape: H and W.
        marks: its annotations, or the segments of its panoptic picture.
    """

    shape: tuple[int, int]
    marks: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class CocoMasks(Masks):
    """How masks are made from annotations.

    Instances: class 0 is the background, and where they overlap the smaller is seen. Panoptic: there is no background,
    and what no segment covers does not count. Crowds do not count in either.

    Attributes:
        panoptic: whether targets are panoptic pictures.
        digest: sha256 of the file.
        numbers: class by category id.
        pictures: by the path of the target, which of instances is the picture itself.
    """

    panoptic: bool = False
    digest: str = ""
    numbers: Mapping[int, int] = field(default_factory=dict, repr=False)
    pictures: Mapping[Path, Picture] = field(default_factory=dict, repr=False)

    def read(self, path: Path) -> np.ndarray:
        """Return the mask of a target as (H, W) int64; BadImageError names what cannot be used."""
        return self._segments(path) if self.panoptic else self._instances(path)

    def _instances(self, path: Path) -> np.ndarray:
        shape, marks = self.pictures[path]
        ids = np.zeros(shape, np.int64)
        for mark in sorted(marks, key=lambda one: float(one.get("area", 0)), reverse=True):
            covered = _covered(mark, shape)
            if covered.shape != shape:
                raise BadImageError(
                    "wrong_size",
                    f"annotation {mark.get('id')} of {path} is of {covered.shape[1]} x {covered.shape[0]} pixels, the "
                    f"picture of {shape[1]} x {shape[0]}; correct it",
                )
            ids[covered] = IGNORED if mark.get("iscrowd") else self.numbers[mark["category_id"]]
        return ids

    def _segments(self, path: Path) -> np.ndarray:
        values = to_rgb_array(path).astype(np.int64) @ np.array([1, 256, 65536])
        ids = np.full(values.shape, IGNORED, np.int64)
        known = {int(mark["id"]): mark for mark in self.pictures[path].marks}
        for segment in np.unique(values):
            if segment == 0:
                continue
            if (mark := known.get(int(segment))) is None:
                raise BadImageError("wrong_id", f"{path} holds the segment {segment}, which its file does not list")
            if not mark.get("iscrowd"):
                ids[values == segment] = self.numbers[mark["category_id"]]
        return ids


def find_coco(folder: Path) -> list[Part]:
    """Return the train and the test part of a folder, one part where there is a single file, or none.

    Read are annotations/panoptic_*.json with the pictures of that name beside them, else annotations/instances_*.json;
    or _annotations.coco.json in train/ and valid/ (val/, test/). Pictures are looked for in the folder of the split and
    in images/.

    Raises:
        ImageSetError: a file that is damaged or contradicts itself, or several of one split; it is named.
    """
    exported = [folder / name / "_annotations.coco.json" for name in ("train", "valid", "val", "test")]
    if files := [path for path in exported if path.is_file()][:2]:
        return _same_classes([_part(path, [path.parent], panoptic=False) for path in files])
    for kind in _KINDS:
        if files := sorted((folder / "annotations").glob(f"{kind}_*.json")):
            return _same_classes([_annotated(folder, path, kind) for path in _chosen(files)])
    return []


def _chosen(files: list[Path]) -> list[Path]:
    """Return the file of the train and that of the test pictures, or the only one."""
    if len(files) == 1:
        return files
    chosen = []
    for names in (_TRAIN, _TEST):
        found = [path for path in files for name in names if name in path.stem]
        if len(found) != 1:
            seen = ", ".join(path.name for path in files)
            raise ImageSetError(
                f"{files[0].parent} holds {seen}; for {' or '.join(names)} there must be one, move the others away"
            )
        chosen.append(found[0])
    return chosen


def _annotated(folder: Path, path: Path, kind: str) -> Part:
    split = path.stem.removeprefix(f"{kind}_")
    places = [folder / split, folder / "images" / split, folder / "images", folder]
    return _part(path, places, panoptic=kind == "panoptic")


def _same_classes(parts: list[Part]) -> list[Part]:
    names = [part.reader.classes for part in parts]
    if any(one != names[0] for one in names):
        raise ImageSetError(
            f"the train file has {len(names[0])} classes, {', '.join(names[0][:3])}, ...; the test file "
            f"{len(names[1])}, {', '.join(names[1][:3])}, ...; both must name the same in the same order"
        )
    return parts


def _part(path: Path, places: Sequence[Path], *, panoptic: bool) -> Part:
    """Read a file; `places` are where its pictures may lie."""
    try:
        data = path.read_bytes()
        content = json.loads(data)
        categories = sorted(content["categories"], key=lambda one: int(one["id"]))
        images = {one["id"]: one for one in content["images"]}
        marks = _marks_of(content["annotations"], images, {one["id"] for one in categories}, path, panoptic=panoptic)
        shapes = {number: (int(one["height"]), int(one["width"])) for number, one in images.items()}
        names = {number: str(one["file_name"]) for number, one in images.items()}
    except OSError as error:
        raise ImageSetError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ImageSetError(f"{path} is no COCO file ({type(error).__name__}: {error}); export it again") from error
    pairs, pictures = [], {}
    for number in sorted(images, key=names.__getitem__):
        image = _place(places, names[number])
        target = image
        if panoptic:
            beside = path.with_suffix("")
            target = _place([beside, path.parent.parent / beside.name], f"{Path(names[number]).stem}.png")
        pairs.append(Pair(image, target))
        pictures[target] = Picture(shapes[number], marks.get(number, ()))
    classes = [str(one["name"]) for one in categories]
    numbers = {one["id"]: place + (not panoptic) for place, one in enumerate(categories)}
    reader = CocoMasks(
        classes if panoptic else ["background", *classes],
        frozenset(),
        panoptic=panoptic,
        digest=hashlib.sha256(data).hexdigest(),
        numbers=numbers,
        pictures=pictures,
    )
    return Part(pairs, reader)


def _marks_of(
    annotations: Sequence[Mapping[str, Any]],
    images: Mapping[Any, Any],
    categories: set[Any],
    path: Path,
    *,
    panoptic: bool,
) -> dict[Any, list[Mapping[str, Any]]]:
    """Return the annotations, or the segments, by picture."""
    marks: dict[Any, list[Mapping[str, Any]]] = {}
    for one in annotations:
        if one["image_id"] not in images:
            raise ImageSetError(f"{path}: an annotation is of the picture {one['image_id']}, which is not listed")
        for mark in one["segments_info"] if panoptic else [one]:
            if mark["category_id"] not in categories:
                raise ImageSetError(
                    f"{path}: annotation {mark.get('id')} is of category {mark['category_id']}, which is not listed; "
                    "add it, or remove the annotation"
                )
            if "segmentation" in mark or panoptic:  # boxes alone say nothing of pixels
                marks.setdefault(one["image_id"], []).append(mark)
    return marks


def _place(places: Sequence[Path], name: str) -> Path:
    return next((place / name for place in places if (place / name).is_file()), places[0] / name)


def _covered(mark: Mapping[str, Any], shape: tuple[int, int]) -> np.ndarray:
    """Return (H, W) bool: the pixels of an instance, from polygons or run lengths."""
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise FovealError("COCO instances need pycocotools: pip install 'foveal[coco]'") from error
    segmentation = mark["segmentation"]
    try:
        if isinstance(segmentation, list):
            parts = [polygon for polygon in segmentation if len(polygon) >= 6]
            if not parts:
                return np.zeros(shape, bool)
            runs = coco.merge(coco.frPyObjects(parts, *shape))
        elif isinstance(segmentation["counts"], list):
            runs = coco.frPyObjects(segmentation, *segmentation["size"])
        else:
            runs = segmentation
        return np.asarray(coco.decode(runs)).astype(bool)
    except (TypeError, ValueError, KeyError) as error:
        raise BadImageError(
            "wrong_annotation", f"the segmentation of annotation {mark.get('id')} cannot be read ({error}); correct it"
        ) from error
