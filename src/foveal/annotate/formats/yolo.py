"""YOLO: a text file a picture, its things as boxes or outlines in shares of width and height, and data.yaml.

Source: the public description of the format, docs.ultralytics.com.
"""

from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath

import numpy as np
import yaml

from foveal.annotate.formats.polygons import extent_of, joined, mask_of, outline_notes, rings_of
from foveal.annotate.types import AnnotatedImage, AnnotatedSet, Annotation
from foveal.errors import FovealError
from foveal.evaluate.video_metrics import region_similarity

PICTURES = "images/train"


def write(annotated: AnnotatedSet, folder: Path, *, masks: bool) -> list[str]:
    """Write labels/train/NAME.txt for every picture, and data.yaml, which takes the same ones to train and validate.

    Args:
        annotated: a checked set.
        folder: to write into.
        masks: outlines of masks, one ring each, holes and parts joined by slits; else boxes, of masks those around
            them.

    Returns:
        What was left out or changed.

    Raises:
        FovealError: two pictures that would share a file.
    """
    files = _files(annotated)
    lines: dict[str, list[str]] = defaultdict(list)
    left: Counter[str] = Counter()
    likeness: list[float] = []
    images = {image.uri: image for image in annotated.images}
    for one in annotated.annotations:
        corners = _outline(one, likeness) if masks else _corners(one)
        if corners is None:
            left["labels of whole pictures" if one.box is None and one.mask is None else "boxes or empty masks"] += 1
            continue
        shares = np.clip(corners / _size(images[one.image]), 0, 1)
        if (np.ptp(shares, axis=0) == 0).any():
            left["boxes without an area in their picture"] += 1
            continue
        if not masks:
            shares = np.array([shares.mean(axis=0), np.ptp(shares, axis=0)])
        number = annotated.classes.index(one.class_name)
        lines[one.image].append(f"{number} " + " ".join(f"{share:.8g}" for share in shares.ravel()))
    for image in annotated.images:
        path = folder / files[image.uri]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines[image.uri]))
    content = {"train": PICTURES, "val": PICTURES, "names": dict(enumerate(annotated.classes))}
    (folder / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    lost = sum(1 for one in annotated.annotations if one.score is not None or one.track is not None)
    notes = [f"{count} {kind} are left out: YOLO's files have no place for them" for kind, count in left.items()]
    notes += [f"scores and tracks of {lost} annotations are left out"] if lost else []
    return [*notes, *outline_notes(likeness), "data.yaml names the same pictures to train and to validate; split them"]


def _files(annotated: AnnotatedSet) -> dict[str, PurePosixPath]:
    """Return the text file of each picture, where it is looked for: `labels` for the last `images` of its path."""
    files = {}
    for image in annotated.images:
        before, _, after = f"/{PICTURES}/{image.uri}".rpartition("/images/")
        files[image.uri] = PurePosixPath(f"{before}/labels/{after}".lstrip("/")).with_suffix(".txt")
    for path, count in Counter(files.values()).items():
        if count > 1:
            same = [uri for uri, file in files.items() if file == path]
            raise FovealError(f"{' and '.join(same)} would share {path}; rename one")
    return files


def _size(image: AnnotatedImage) -> np.ndarray:
    return np.array([image.width, image.height], np.float64)


def _corners(one: Annotation) -> np.ndarray | None:
    """Return the upper left and the lower right corner of a box, (2, 2), or None."""
    box = one.box or (extent_of(one.mask.pixels()) if one.mask is not None else None)
    if box is None:
        return None
    return np.array([[box.x, box.y], [box.x + box.width, box.y + box.height]])


def _outline(one: Annotation, likeness: list[float]) -> np.ndarray | None:
    """Return a mask's outline, (N, 2), or None; its likeness to the mask is appended."""
    if one.mask is None:
        return None
    pixels = one.mask.pixels()
    if not (rings := rings_of(pixels)):
        return None
    ring = rings[0]
    for other in rings[1:]:
        ring = joined(ring, other)
    likeness.append(region_similarity(pixels, mask_of([ring], *pixels.shape, where=one.image).pixels()))
    return ring
