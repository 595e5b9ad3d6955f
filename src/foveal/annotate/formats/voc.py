"""Pascal VOC: masks as palette PNGs, one of classes and one of objects.

Source: the VOC development kit: 0 is the background, 255 does not count.
"""

from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np

from foveal.annotate.types import AnnotatedImage, AnnotatedSet, Annotation, Mask
from foveal.errors import FovealError
from foveal.images.masks import encode_ids, palette

PICTURES = "JPEGImages"
_MOST = 254  # 255 is what does not count


def write(annotated: AnnotatedSet, folder: Path) -> list[str]:
    """Write SegmentationClass/ and SegmentationObject/, labelmap.txt, and ImageSets/Segmentation/default.txt.

    Where masks overlap the smaller is seen. Class numbers follow the order of the classes, from 1.

    Returns:
        What was left out or changed.

    Raises:
        FovealError: more classes, or objects of a picture, than a byte holds, or two pictures that would share a file.
    """
    masks: dict[str, list[tuple[Mask, str]]] = defaultdict(list)
    for one in annotated.annotations:
        if one.mask is not None:
            masks[one.image].append((one.mask, one.class_name))
    _check(annotated, masks)
    names = [PurePosixPath(image.uri).with_suffix("").as_posix() for image in annotated.images]
    hidden = 0
    for image, name in zip(annotated.images, names, strict=True):
        classes, objects, covered = _drawn(image, masks[image.uri], annotated.classes)
        hidden += covered
        for kind, ids in (("SegmentationClass", classes), ("SegmentationObject", objects)):
            path = folder / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_ids(ids))
    colours = palette().tolist()
    table = ["# label:color_rgb:parts:actions"]
    table += [
        f"{name}:{','.join(map(str, colours[number]))}::"
        for number, name in enumerate(["background", *annotated.classes])
    ]
    (folder / "labelmap.txt").write_text("\n".join(table) + "\n")
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/default.txt").write_text("".join(f"{name}\n" for name in names))
    return _notes(annotated.annotations, hidden)


def _drawn(
    image: AnnotatedImage, masks: list[tuple[Mask, str]], names: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the numbers of classes and objects, (H, W) each, and how many pixels were covered by another object."""
    classes, objects = (np.zeros((image.height, image.width), np.int64) for _ in range(2))
    drawn = [(mask.pixels(), names.index(name) + 1) for mask, name in masks]
    order = sorted(range(len(drawn)), key=lambda place: -np.count_nonzero(drawn[place][0]))
    for place in order:
        pixels, number = drawn[place]
        classes[pixels], objects[pixels] = number, place + 1
    total = sum(np.count_nonzero(pixels) for pixels, _ in drawn)
    return classes, objects, int(total - np.count_nonzero(objects))


def _check(annotated: AnnotatedSet, masks: dict[str, list[tuple[Mask, str]]]) -> None:
    if len(annotated.classes) > _MOST:
        raise FovealError(f"{len(annotated.classes)} classes; VOC's masks hold {_MOST}: write another format")
    if odd := [name for name in annotated.classes if ":" in name or "\n" in name or name == "background"]:
        raise FovealError(f"the class {odd[0]!r} cannot be named in labelmap.txt; rename it")
    for uri, found in masks.items():
        if len(found) > _MOST:
            raise FovealError(f"{uri} has {len(found)} masks; VOC's hold {_MOST} a picture: write another format")
    files: dict[PurePosixPath, str] = {}
    for image in annotated.images:
        path = PurePosixPath(image.uri).with_suffix("")
        if (other := files.setdefault(path, image.uri)) != image.uri:
            raise FovealError(f"{other} and {image.uri} would share {path}.png; rename one")


def _notes(annotations: tuple[Annotation, ...], hidden: int) -> list[str]:
    without = sum(1 for one in annotations if one.mask is None)
    lost = sum(1 for one in annotations if one.mask is not None and (one.score is not None or one.track is not None))
    notes = [f"{without} boxes and labels of whole pictures are left out: VOC's masks have no place for them"]
    return (
        (notes if without else [])
        + ([f"scores and tracks of {lost} masks are left out"] if lost else [])
        + ([f"{hidden} pixels are of several masks, and show the smallest"] if hidden else [])
    )
