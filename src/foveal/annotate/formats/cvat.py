"""CVAT's XML: pictures with tags, boxes, polygons and masks, or tracks through the frames of a video.

Source: the public description of version 1.1, docs.cvat.ai. Masks are runs of the rows of a rectangle around them.
"""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from foveal.annotate.formats.attributes import kept_in, left_out, others_in, restored
from foveal.annotate.formats.documents import number, read_xml
from foveal.annotate.formats.found import Found
from foveal.annotate.formats.pictures import Pictures
from foveal.annotate.formats.polygons import extent_of, mask_of
from foveal.annotate.formats.runs import pixels_of, run_lengths
from foveal.annotate.types import AnnotatedImage, AnnotatedSet, Annotation, Box, Mask
from foveal.errors import FovealError

PICTURES = "images"
_FILE = "annotations.xml"
_DECIMALS = 6  # of a pixel, below which a difference is rounding
_SHAPES = ("tag", "box", "polygon", "mask")
_SOURCES = {"user": "manual", "propagated": "auto", "imported": "file"}


def write(annotated: AnnotatedSet, folder: Path) -> list[str]:
    """Write annotations.xml of "CVAT for images": labels of whole pictures as tags, boxes, and masks without loss.

    State, source, track and score are attributes of the labels; CVAT keeps those that its task declares.

    Returns:
        What was left out or changed.
    """
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    _write_labels(root, annotated)
    both = empty = 0
    elements = {}
    for place, image in enumerate(annotated.images):
        size = {"width": str(image.width), "height": str(image.height)}
        elements[image.uri] = SubElement(root, "image", {"id": str(place), "name": image.uri, **size})
    for one in annotated.annotations:
        if (shape := _shape_of(one)) is None:
            empty += 1
            continue
        both += one.mask is not None and one.box is not None
        kind, values = shape
        element = SubElement(
            elements[one.image], kind, {"label": one.class_name, "source": _SOURCES[one.source], **values}
        )
        for name, value in _marks(one).items():
            SubElement(element, "attribute", name=name).text = value
    ElementTree.indent(root)
    (folder / _FILE).write_bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
    notes = [f"boxes of {both} masks are left out: CVAT holds one shape an annotation"] if both else []
    return notes + ([f"{empty} empty masks are left out"] if empty else [])


def _marks(one: Annotation) -> dict[str, str]:
    return kept_in(one) | ({} if one.score is None else {"score": repr(float(one.score))})


def _write_labels(root: Element, annotated: AnnotatedSet) -> None:
    used = sorted({name for one in annotated.annotations for name in _marks(one)})
    task = SubElement(SubElement(root, "meta"), "task")
    SubElement(task, "name").text = "foveal"
    SubElement(task, "size").text = str(len(annotated.images))
    SubElement(task, "mode").text = "annotation"
    labels = SubElement(task, "labels")
    for name in annotated.classes:
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
        SubElement(label, "type").text = "any"
        attributes = SubElement(label, "attributes")
        for attribute in used:
            element = SubElement(attributes, "attribute")
            for key, value in (("name", attribute), ("mutable", "False"), ("input_type", "text"), ("values", "")):
                SubElement(element, key).text = value
            SubElement(element, "default_value").text = ""


def _shape_of(one: Annotation) -> tuple[str, dict[str, str]] | None:
    """Return the element's name and its place, or None of an empty mask."""
    if one.mask is not None:
        pixels = one.mask.pixels()
        if (extent := extent_of(pixels)) is None:
            return None
        left, top, width, height = map(int, extent)
        runs = run_lengths(pixels[top : top + height, left : left + width].ravel())
        values = {"rle": ", ".join(map(str, runs)), "left": left, "top": top, "width": width, "height": height}
        return "mask", {"occluded": "0", **{name: str(value) for name, value in values.items()}, "z_order": "0"}
    if one.box is None:
        return "tag", {}
    box = one.box
    corners = {"xtl": box.x, "ytl": box.y, "xbr": box.x + box.width, "ybr": box.y + box.height}
    return "box", {"occluded": "0", **{name: repr(float(value)) for name, value in corners.items()}, "z_order": "0"}


class _Shape(NamedTuple):
    """One annotation as the file has it."""

    element: Element
    image: AnnotatedImage
    label: str
    track: str | None
    where: str


def read(path: Path, pictures: Pictures) -> Found:
    """Read annotations.xml, or the one of a folder.

    Polygons and turned boxes become pixels. Tracks name frames by their number: the pictures of the image set in its
    order; where a track is outside, there is no annotation. Other shapes are left out.
    """
    path = path / _FILE if path.is_dir() else path
    root = read_xml(path)
    if root.tag != "annotations":
        raise FovealError(f"{path} is no file of CVAT: its root is <{root.tag[:40]}>; export annotations.xml again")
    classes = _classes(root, path)
    counts: Counter[str] = Counter()
    images: dict[str, AnnotatedImage] = {}
    shapes = [*_of_images(root, path, pictures, images, counts), *_of_tracks(root, path, pictures, images, counts)]
    for shape in shapes:
        if shape.label not in classes:
            if root.find("meta") is not None:
                raise FovealError(f"{shape.where} is of the label {shape.label!r}, which the file does not list")
            classes.append(shape.label)
    notes = [f"{count} shapes of the kind {kind} are left out" for kind, count in sorted(counts.items())]
    notes += left_out(Counter(name for shape in shapes for name in others_in(_attributes(shape.element))))
    annotations = tuple(_annotation(shape) for shape in shapes)
    return Found(AnnotatedSet(tuple(classes), tuple(images.values()), annotations), tuple(notes))


def _classes(root: Element, path: Path) -> list[str]:
    names = []
    for place, label in enumerate(root.iterfind("./meta//labels/label")):
        if label.find("parent") is not None:  # a point of a skeleton
            continue
        if not (name := label.findtext("name") or "").strip():
            raise FovealError(f"{path}: label {place + 1} has no name; name it and export again")
        if name not in names:  # the labels of a project stand at each of its tasks
            names.append(name)
    return names


def _of_images(
    root: Element, path: Path, pictures: Pictures, images: dict[str, AnnotatedImage], counts: Counter[str]
) -> Iterator[_Shape]:
    for element in root.iterfind("image"):
        where = f"{path}: picture {_text(element, 'name', str(path))}"
        width, height = (_whole(element, side, where) for side in ("width", "height"))
        if (image := pictures.find(element.attrib["name"], width, height)) is None:
            continue
        if image.uri in images:
            raise FovealError(f"{where} is there twice; export it again")
        images[image.uri] = image
        for place, shape in enumerate(element):
            if shape.tag not in _SHAPES:
                counts[shape.tag] += 1
                continue
            here = f"{where}: {shape.tag} {place + 1}"
            yield _Shape(shape, image, _text(shape, "label", here), None, here)


def _of_tracks(
    root: Element, path: Path, pictures: Pictures, images: dict[str, AnnotatedImage], counts: Counter[str]
) -> Iterator[_Shape]:
    if root.find("track") is not None and len(root.findall("./meta/project/tasks/task")) > 1:
        raise FovealError(
            f"{path} has tracks of several tasks, each with frames from 0 on; export the tasks one by one"
        )
    size = root.find("./meta//original_size")
    sides = [
        None if size is None else int(number(size.findtext(side), where=str(path))) for side in ("width", "height")
    ]
    for track in root.iterfind("track"):
        where = f"{path}: track {_text(track, 'id', str(path))}"
        label = _text(track, "label", where)
        for shape in track:
            if shape.tag not in _SHAPES:
                counts[shape.tag] += 1
                continue
            frame = _whole(shape, "frame", where)
            if shape.get("outside") == "1":
                continue
            uri = pictures.frame(frame)
            if uri not in images and (image := pictures.find(uri, *sides)) is not None:
                images[uri] = image
            yield _Shape(shape, images[uri], label, track.attrib["id"], f"{where}: frame {frame}")


def _annotation(shape: _Shape) -> Annotation:
    element, image, where = shape.element, shape.image, shape.where
    marks = _attributes(element)
    score = marks.get("score")
    one = Annotation(
        image.uri,
        shape.label,
        _mask(element, image, where),
        _box(element, where) if element.tag == "box" and not _turn(element, where) else None,
        source="imported",
        score=_share(score),
        track=shape.track,
    )
    return restored(one, marks)


def _attributes(element: Element) -> dict[str, str]:
    return {one.get("name", ""): (one.text or "") for one in element.iterfind("attribute")}


def _share(text: str | None) -> float | None:
    """Return a score of ours; an attribute of that name may also be another's."""
    try:
        found = float(text or "")
    except ValueError:
        return None
    return found if 0 <= found <= 1 else None


def _box(element: Element, where: str) -> Box:
    left, top, right, bottom = (number(element.get(name), where=where) for name in ("xtl", "ytl", "xbr", "ybr"))
    return Box(left, top, round(right - left, _DECIMALS), round(bottom - top, _DECIMALS))


def _turn(element: Element, where: str) -> float:
    return number(element.get("rotation", "0"), where=where)


def _turned(box: Box, degrees: float) -> np.ndarray:
    """Return the corners (4, 2) of a box, turned clockwise around its middle."""
    middle, half = np.array([box.x + box.width / 2, box.y + box.height / 2]), np.array([box.width, box.height]) / 2
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    found: np.ndarray = corners @ np.array([[cosine, sine], [-sine, cosine]]) + middle
    return found


def _mask(element: Element, image: AnnotatedImage, where: str) -> Mask | None:
    if element.tag == "box" and (degrees := _turn(element, where)):
        return mask_of([_turned(_box(element, where), degrees)], image.height, image.width, where=where)
    if element.tag == "polygon":
        pairs = [pair.split(",") for pair in _text(element, "points", where).split(";")]
        if len(pairs) < 3 or any(len(pair) != 2 for pair in pairs):
            raise FovealError(f"{where}: points that are no polygon; correct it")
        points = np.array([[number(value, where=where) for value in pair] for pair in pairs])
        return mask_of([points], image.height, image.width, where=where)
    if element.tag != "mask":
        return None
    left, top, width, height = (_whole(element, name, where) for name in ("left", "top", "width", "height"))
    if min(left, top) < 0 or left + width > image.width or top + height > image.height:
        raise FovealError(
            f"{where}: a mask that leaves the picture of {image.width} x {image.height} pixels; correct it"
        )
    try:
        lengths = np.array(_text(element, "rle", where).split(","), np.int64)
    except (ValueError, OverflowError) as error:
        raise FovealError(f"{where}: runs that are no whole numbers ({error}); export it again") from error
    pixels = np.zeros((image.height, image.width), bool)
    pixels[top : top + height, left : left + width] = pixels_of(lengths, height, width, where=where)
    return Mask.of(pixels)


def _text(element: Element, name: str, where: str) -> str:
    if (found := element.get(name)) is None:
        raise FovealError(f"{where}: <{element.tag}> has no {name}; export it again")
    return found


def _whole(element: Element, name: str, where: str) -> int:
    try:
        return int(_text(element, name, where))
    except ValueError as error:
        raise FovealError(f"{where}: {name}={element.get(name)!r} is no whole number; correct it") from error
