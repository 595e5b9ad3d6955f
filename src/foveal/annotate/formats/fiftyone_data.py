"""FiftyOne: a folder with samples.json and metadata.json, as its FiftyOneDataset is exported.

Source: the public description of the format, docs.voxel51.com. Places are shares of the picture's sides; a mask is of
the pixels of its box, as a compressed NumPy array. What is written names no version: FiftyOne reads it as its older
layout, which needs nothing of its database.
"""

import base64
import binascii
import io
import json
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from foveal.annotate.formats.attributes import restored
from foveal.annotate.formats.documents import field, number, points, read_json
from foveal.annotate.formats.found import Found
from foveal.annotate.formats.pictures import Pictures
from foveal.annotate.formats.polygons import extent_of, mask_of
from foveal.annotate.types import AnnotatedImage, AnnotatedSet, Annotation, Box, Mask
from foveal.errors import FovealError, nearest

PICTURES = "data"
_SAMPLES, _METADATA = "samples.json", "metadata.json"
_KINDS = {"Detections": "detections", "Classifications": "classifications", "Polylines": "polylines"}
_SINGLE = ("Detection", "Classification", "Polyline")
_FILES = "mask_path"  # of a detection, instead of the mask
_DECIMALS = 6  # of a pixel, below which a share is rounding
_MOST_BYTES = 128_000_000  # of one mask
_FIELDS = {
    "filepath": "fiftyone.core.fields.StringField",
    "tags": "fiftyone.core.fields.ListField(fiftyone.core.fields.StringField)",
    "metadata": "fiftyone.core.fields.EmbeddedDocumentField(fiftyone.core.metadata.ImageMetadata)",
    "detections": "fiftyone.core.fields.EmbeddedDocumentField(fiftyone.core.labels.Detections)",
    "labels": "fiftyone.core.fields.EmbeddedDocumentField(fiftyone.core.labels.Classifications)",
}


def write(annotated: AnnotatedSet, folder: Path) -> list[str]:
    """Write samples.json and metadata.json: boxes and masks as `detections`, labels of whole pictures as `labels`.

    The state is a tag of each where it is not accepted; source and track are attributes.

    Returns:
        What was left out or changed.
    """
    by_image: dict[str, list[Annotation]] = defaultdict(list)
    for one in annotated.annotations:
        by_image[one.image].append(one)
    samples = [sample_of(image, by_image[image.uri]) for image in annotated.images]
    classes = list(annotated.classes)
    metadata = {
        "name": "foveal",
        "media_type": "image",
        "sample_fields": _FIELDS,
        "info": {},
        "classes": {"detections": classes, "labels": classes},
        "default_classes": classes,
    }
    (folder / _METADATA).write_text(json.dumps(metadata) + "\n")
    (folder / _SAMPLES).write_text(json.dumps({"samples": samples}, allow_nan=False) + "\n")
    both = sum(1 for one in annotated.annotations if one.mask is not None and one.box is not None)
    empty = sum(1 for one in annotated.annotations if one.mask is not None and not one.mask.pixels().any())
    notes = [f"boxes of {both} masks are those around them: a mask fills its box"] if both else []
    return notes + ([f"{empty} empty masks are left out"] if empty else [])


def sample_of(image: AnnotatedImage, annotations: list[Annotation]) -> dict[str, Any]:
    """Return a picture with what is said of it as a sample in JSON."""
    labels = [
        {"_cls": "Classification", "label": one.class_name, **_more(one)}
        for one in annotations
        if one.mask is None and one.box is None
    ]
    detections = [found for one in annotations if (found := _detection(one, image)) is not None]
    size = {"_cls": "ImageMetadata", "width": image.width, "height": image.height}
    return {
        "filepath": f"{PICTURES}/{image.uri}",
        "tags": [],
        "metadata": size,
        "detections": {"_cls": "Detections", "detections": detections},
        "labels": {"_cls": "Classifications", "classifications": labels},
    }


def _more(one: Annotation) -> dict[str, Any]:
    more: dict[str, Any] = {"tags": [] if one.state == "accepted" else [one.state]}
    more |= {} if one.score is None else {"confidence": one.score}
    more |= {} if one.source == "imported" else {"source": one.source}
    return more | ({} if one.track is None else {"track_id": one.track})


def _detection(one: Annotation, image: AnnotatedImage) -> dict[str, Any] | None:
    pixels = one.mask.pixels() if one.mask is not None else None
    box = extent_of(pixels) if pixels is not None else one.box
    if box is None:
        return None
    shares = (np.array(box) / np.array([image.width, image.height] * 2)).tolist()
    found: dict[str, Any] = {"_cls": "Detection", "label": one.class_name, "bounding_box": shares, **_more(one)}
    if pixels is not None:
        left, top, width, height = map(int, box)
        found["mask"] = _packed(pixels[top : top + height, left : left + width])
    return found


def _packed(pixels: np.ndarray) -> dict[str, Any]:
    stream = io.BytesIO()
    np.save(stream, pixels, allow_pickle=False)
    text = base64.b64encode(zlib.compress(stream.getvalue())).decode("ascii")
    return {"$binary": {"base64": text, "subType": "00"}}


def read(path: Path, pictures: Pictures, fields: Collection[str] = ()) -> Found:
    """Read an exported folder.

    Args:
        path: the folder, or its samples.json.
        pictures: what its samples are of.
        fields: the fields to read; empty for all that hold labels, where that is `detections` and `labels` or only one.

    Polylines become pixels. A mask of another size than its box is drawn to it.
    """
    path = path if path.name == _SAMPLES else path / _SAMPLES
    samples = field(read_json(path), "samples", list, where=str(path))
    chosen = _chosen(samples, fields, path)
    images: dict[str, AnnotatedImage] = {}
    annotations: list[Annotation] = []
    counts: Counter[str] = Counter()
    for place, sample in enumerate(samples):
        where = f"{path}: sample {place + 1}"
        name = field(sample, "filepath", str, where=where)
        image = pictures.find(_uri(name), *_size(sample.get("metadata"), where=where))
        if image is None:
            continue
        if image.uri in images:
            raise FovealError(f"{where} is of {image.uri}, as another is; export it again")
        images[image.uri] = image
        for one in chosen:
            annotations += labels_in(sample.get(one), image, counts, where=f"{where}: {one}")
    names = dict.fromkeys([*_classes(path.with_name(_METADATA), chosen), *(one.class_name for one in annotations)])
    return Found(AnnotatedSet(tuple(names), tuple(images.values()), tuple(annotations)), tuple(notes_of(counts)))


def notes_of(counts: Counter[str]) -> list[str]:
    """Say what `labels_in` has left out."""
    kinds = [f"{num} labels of the kind {kind} are left out" for kind, num in sorted(counts.items()) if kind != _FILES]
    files = counts[_FILES]
    return kinds + ([f"{files} masks are in files of their own, and only their boxes are read"] if files else [])


def _size(metadata: Any, *, where: str) -> tuple[int | None, int | None]:
    """Return width and height as a sample has them; None where it was not looked at."""
    if metadata is None or (isinstance(metadata, Mapping) and metadata.get("width") is None):
        return None, None
    width, height = (field(metadata, side, int, where=f"{where}: metadata") for side in ("width", "height"))
    return width, height


def _chosen(samples: list[Any], fields: Collection[str], path: Path) -> list[str]:
    """Return the fields to read."""
    held: dict[str, None] = {}
    for sample in samples:
        for name, value in sample.items() if isinstance(sample, Mapping) else ():
            if isinstance(value, Mapping) and value.get("_cls") in (*_KINDS, *_SINGLE):
                held[name] = None
    if unknown := [name for name in fields if name not in held]:
        raise FovealError(f"{path} has no labels in {unknown[0]!r}{nearest(unknown[0], held)}; found {', '.join(held)}")
    if not fields and len(held) > 1 and not set(held) <= {"detections", "labels"}:
        raise FovealError(f"{path} has labels in {', '.join(held)}; name the fields that are meant")
    return list(fields or held)


def _uri(name: str) -> str:
    path = PurePosixPath(name)
    return path.relative_to(PICTURES).as_posix() if path.parts[:1] == (PICTURES,) else name


def _classes(path: Path, fields: Collection[str]) -> list[str]:
    """Return the classes that the data set declares for these fields, in their order."""
    content = read_json(path) if path.is_file() else {}
    declared = content.get("classes") if isinstance(content, Mapping) else None
    found = [declared.get(name) for name in fields] if isinstance(declared, Mapping) else []
    return [str(name) for names in found if isinstance(names, list) for name in names]


def labels_in(value: Any, image: AnnotatedImage, counts: Counter[str], *, where: str) -> Iterator[Annotation]:
    """Yield what a field of a sample in JSON says of its picture; `counts` is told what is left out."""
    if value is None:
        return
    kind = field(value, "_cls", str, where=where)
    labels = field(value, _KINDS[kind], list, where=where) if kind in _KINDS else [value]
    for place, label in enumerate(labels):
        here = f"{where} {place + 1}"
        kind = field(label, "_cls", str, where=here)
        if kind not in _SINGLE or (kind == "Polyline" and not label.get("closed")):
            counts[kind] += 1
            continue
        counts.update([_FILES] if label.get("mask") is None and label.get(_FILES) else [])
        mask, box = _shape(kind, label, image, where=here)
        score = label.get("confidence")
        one = Annotation(
            image.uri,
            field(label, "label", str, where=here),
            mask,
            box,
            source="imported",
            score=None if score is None else number(score, where=here),
        )
        tags = label.get("tags")
        state = next((tag for tag in tags if tag != "accepted"), None) if isinstance(tags, list) else None
        yield restored(one, {**label, "state": state})


def _shape(kind: str, label: Mapping[str, Any], image: AnnotatedImage, *, where: str) -> tuple[Mask | None, Box | None]:
    if kind == "Classification":
        return None, None
    sides = np.array([image.width, image.height])
    if kind == "Polyline":
        rings = [points(ring, where=where) * sides for ring in field(label, "points", list, where=where)]
        if not (whole := [ring for ring in rings if len(ring) >= 3]):
            raise FovealError(f"{where}: a polyline without an outline of 3 points; correct it")
        return mask_of(whole, image.height, image.width, where=where), None
    shares = field(label, "bounding_box", list, where=where)
    if len(shares) != 4:
        raise FovealError(f"{where}: a box of {len(shares)} numbers; it must be x, y, width and height")
    values = np.array([number(share, where=where) for share in shares]) * np.tile(sides, 2)
    box = Box(*np.round(values, _DECIMALS).tolist())
    if label.get("mask") is None:
        return None, box
    pixels = _unpacked(label["mask"], where=where)
    return Mask.of(_placed(pixels, box, image, where=where)), None


def _unpacked(value: Any, *, where: str) -> np.ndarray:
    """Return the mask of a box, (h, w) bool; no more is unpacked than a picture may have. In FiftyOne it is bytes."""
    binary = value.get("$binary") if isinstance(value, Mapping) else value
    text = binary.get("base64") if isinstance(binary, Mapping) else binary
    try:
        unpacker = zlib.decompressobj()
        packed = text if isinstance(text, bytes) else base64.b64decode(str(text), validate=True)
        data = unpacker.decompress(packed, _MOST_BYTES)
        if unpacker.unconsumed_tail:
            raise ValueError("it is too large")
        stream = io.BytesIO(data)
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("it is of a newer NumPy")
        shape, by_column, kind = np.lib.format.read_array_header_1_0(stream)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise FovealError(f"{where}: a mask that cannot be unpacked ({error}); export it again") from error
    content = stream.read()
    if (
        len(shape) != 2
        or kind.kind not in ("b", "u", "i")
        or not content
        or math.prod(shape) * kind.itemsize != len(content)
    ):
        raise FovealError(
            f"{where}: a mask of shape {shape}, type {kind} and {len(content)} bytes; it must be (H, W) bool"
        )
    return np.frombuffer(content, kind).reshape(shape, order="F" if by_column else "C").astype(bool)


def _placed(pixels: np.ndarray, box: Box, image: AnnotatedImage, *, where: str) -> np.ndarray:
    """Return (H, W) bool: the mask of a box in its picture, by nearest neighbours where it is of another size.

    The corners of the box are rounded to pixels, as FiftyOne does.
    """
    limits = np.array([image.width, image.height] * 2)
    corners = np.array([box.x, box.y, box.x + box.width, box.y + box.height])
    if not ((corners >= -1) & (corners <= limits + 1)).all() or min(box[2:]) < 0:
        size = f"{image.width} x {image.height}"
        raise FovealError(f"{where}: a mask that leaves the picture of {size} pixels; correct it")
    left, top = np.clip(np.round(corners[:2]), 0, limits[:2] - 1).astype(int).tolist()
    right, bottom = np.clip(np.round(corners[2:]), (left + 1, top + 1), limits[:2]).astype(int).tolist()
    width, height = right - left, bottom - top
    rows = (np.arange(height) + 0.5) * pixels.shape[0] / height
    columns = (np.arange(width) + 0.5) * pixels.shape[1] / width
    whole = np.zeros((image.height, image.width), bool)
    whole[top : top + height, left : left + width] = pixels[np.ix_(rows.astype(int), columns.astype(int))]
    return whole
