"""Label Studio's JSON: tasks with annotations, which people made, and predictions, which they have not yet judged.

Source: the public description of the format, labelstud.io/guide. Places are percentages of the picture's sides.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from foveal.annotate.formats.attributes import kept_in, restored
from foveal.annotate.formats.documents import field, number, points, read_json, read_xml
from foveal.annotate.formats.found import Found
from foveal.annotate.formats.label_studio_brush import decode_brush, encode_brush
from foveal.annotate.formats.pictures import Pictures
from foveal.annotate.formats.polygons import mask_of
from foveal.annotate.types import AnnotatedImage, AnnotatedSet, Annotation, Box, Mask
from foveal.errors import FovealError
from foveal.images.sources import IMAGE_SUFFIXES

PICTURES = "images"
LOCAL_FILES = "/data/local-files/?d="  # how the tool names files of its own disk
_TASKS, _CONFIG = "tasks.json", "label_config.xml"
_LABELS = ("rectanglelabels", "polygonlabels", "brushlabels", "labels", "choices")
_PLACES = ("x", "points", "rle", "vertices")  # of these a region has one, and so has what is said of it
_DECIMALS = 6  # of a pixel, below which a percentage is rounding


def write(annotated: AnnotatedSet, folder: Path) -> list[str]:
    """Write tasks.json to import, and label_config.xml, the labelling interface that they fit.

    Annotations that a person accepted are annotations there, others predictions. State, source and track are kept in
    the `meta` of each region.

    Returns:
        What was left out or changed.
    """
    by_image: dict[str, list[Annotation]] = defaultdict(list)
    for one in annotated.annotations:
        by_image[one.image].append(one)
    both = sum(1 for one in annotated.annotations if one.mask is not None and one.box is not None)
    tasks = [_task(image, by_image[image.uri]) for image in annotated.images]
    (folder / _TASKS).write_text(json.dumps(tasks, allow_nan=False) + "\n")
    (folder / _CONFIG).write_bytes(label_config(annotated.classes))
    return [f"boxes of {both} masks are left out: Label Studio holds one shape a region"] if both else []


def label_config(classes: tuple[str, ...]) -> bytes:
    """Return a labelling interface with these classes as choices, rectangles and brushes."""
    view = Element("View")
    SubElement(view, "Image", name="image", value="$image")
    tags = (("Choices", "label", "Choice"), ("RectangleLabels", "box", "Label"), ("BrushLabels", "mask", "Label"))
    for tag, name, item in tags:
        element = SubElement(view, tag, name=name, toName="image")
        if tag == "Choices":
            element.set("choice", "multiple")
        for class_name in classes:
            SubElement(element, item, value=class_name)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="utf-8")


def _task(image: AnnotatedImage, annotations: list[Annotation]) -> dict[str, Any]:
    accepted = [result_of(one, image, place) for place, one in enumerate(annotations) if one.state == "accepted"]
    others = [result_of(one, image, place) for place, one in enumerate(annotations) if one.state != "accepted"]
    task: dict[str, Any] = {"data": {"image": LOCAL_FILES + quote(image.uri)}, "annotations": [], "predictions": []}
    if accepted:
        task["annotations"].append({"result": accepted})
    if others:
        task["predictions"].append({"model_version": "foveal", "result": others})
    return task


def result_of(one: Annotation, image: AnnotatedImage, name: int | str) -> dict[str, Any]:
    """Return an annotation as a result of `label_config`'s interface.

    Args:
        one: the annotation.
        image: its picture.
        name: what tells it from the others of the task.
    """
    sides = {"original_width": image.width, "original_height": image.height, "image_rotation": 0}
    value: dict[str, Any]
    result: dict[str, Any] = {"id": f"foveal{name}", "to_name": "image", **sides}
    if one.mask is not None:
        value = {"format": "rle", "rle": encode_brush(one.mask.pixels()), "brushlabels": [one.class_name]}
        result |= {"from_name": "mask", "type": "brushlabels", "value": value}
    elif one.box is not None:
        shares = np.array(one.box) / np.array([image.width, image.height] * 2) * 100
        x, y, width, height = shares.tolist()
        value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": [one.class_name]}
        result |= {"from_name": "box", "type": "rectanglelabels", "value": value}
    else:
        result |= {"from_name": "label", "type": "choices", "value": {"choices": [one.class_name]}}
    if one.score is not None:
        result["score"] = one.score
    return result | ({"meta": meta} if (meta := kept_in(one)) else {})


def read(path: Path, pictures: Pictures) -> Found:
    """Read an export, or tasks.json of a folder.

    Of several annotations of a task the ground truth is read, else the one that was changed last; of several
    predictions the last. Polygons and turned rectangles become pixels. A region of several labels becomes several
    annotations.
    """
    path = path / _TASKS if path.is_dir() else path
    tasks = read_json(path)
    if not isinstance(tasks, list) or not all(isinstance(task, Mapping) for task in tasks):
        raise FovealError(f"{path} is no list of tasks; export the project as JSON")
    counts: Counter[str] = Counter()
    images: dict[str, AnnotatedImage] = {}
    annotations: list[Annotation] = []
    for place, task in enumerate(tasks):
        where = f"{path}: task {task.get('id', place + 1)}"
        if (found := read_task(task, pictures, counts, where=where)) is None:
            continue
        image, of_task = found
        if image.uri in images:
            raise FovealError(f"{where} is of {image.uri}, as another is; merge them")
        images[image.uri] = image
        annotations += of_task
    classes = dict.fromkeys(one.class_name for one in annotations)
    beside = path.with_name(_CONFIG)
    names = [*(_configured(beside) if beside.is_file() else ()), *classes]
    return Found(AnnotatedSet(tuple(dict.fromkeys(names)), tuple(images.values()), tuple(annotations)), _notes(counts))


def read_task(
    task: Mapping[str, Any], pictures: Pictures, counts: Counter[str], *, where: str
) -> tuple[AnnotatedImage, list[Annotation]] | None:
    """Return the picture of a task and what is said of it; None where `pictures` lacks it.

    Args:
        task: as the tool exports and sends it.
        pictures: among which its picture is looked for.
        counts: is told what was left out.
        where: names the task in errors.
    """
    results = list(_results(task, counts, where=where))
    if (image := image_of(task, [result for result, _ in results], pictures, where=where)) is None:
        return None
    return image, [
        one for result, defaults in results for one in _annotations(result, image, defaults, counts, where=where)
    ]


def _configured(path: Path) -> Iterator[str]:
    for element in read_xml(path).iter():
        if element.tag in ("Label", "Choice") and (name := element.get("value")):
            yield name


def _notes(counts: Counter[str]) -> tuple[str, ...]:
    texts = {
        "several": "tasks have several annotations or predictions; the ground truth or the last was read",
        "unknown": "results are of kinds that are left out: {}",
    }
    kinds = sorted(kind for kind in counts if kind not in texts)
    unknown = sum(counts[kind] for kind in kinds)
    notes = [f"{counts['several']} {texts['several']}"] if counts["several"] else []
    return (*notes, f"{unknown} {texts['unknown'].format(', '.join(kinds))}") if unknown else tuple(notes)


def _results(task: Mapping[str, Any], counts: Counter[str], *, where: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield results, each with what holds for it where it says nothing itself."""
    for kind, state in (("annotations", "accepted"), ("predictions", "proposed")):
        found = task.get(kind) or []
        if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
            raise FovealError(f"{where} has {kind} that are no list; export the project as JSON")
        found = [one for one in found if not one.get("was_cancelled")]
        if not found:
            continue
        counts["several"] += len(found) > 1
        newest = max(enumerate(found), key=lambda one: (str(one[1].get("updated_at") or ""), one[0]))[1]
        chosen = next((one for one in found if one.get("ground_truth")), newest)
        defaults = {"state": state, "score": chosen.get("score")}
        yield from ((result, defaults) for result in field(chosen, "result", list, where=where))


def image_of(task: Mapping[str, Any], results: list[Any], pictures: Pictures, *, where: str) -> AnnotatedImage | None:
    """Return the picture of a task, of the size that its results say; None where `pictures` lacks it."""
    data = field(task, "data", Mapping, where=where)
    named = [str(value) for value in data.values() if str(value).lower().endswith(IMAGE_SUFFIXES)]
    address = data.get("image") or (named[0] if len(named) == 1 else None)
    if not isinstance(address, str):
        raise FovealError(f"{where} names no picture as `image`; its data are {', '.join(map(str, data))[:80]}")
    sizes = {
        (one["original_width"], one["original_height"])
        for one in results
        if isinstance(one, Mapping)
        and isinstance(one.get("original_width"), int)
        and isinstance(one.get("original_height"), int)
    }
    if len(sizes) > 1:
        raise FovealError(
            f"{where}: its results are of pictures of several sizes, {sorted(map(str, sizes))}; correct it"
        )
    width, height = sizes.pop() if sizes else (None, None)
    return pictures.find(_uri(address), width, height)


def _uri(address: str) -> str:
    """Return the path of a picture without what the tool puts before it: its addresses, and the mark of an upload."""
    path = re.sub(r"[\w+.-]+://[^/?#]*", "", address, count=1) if "://" in address else address
    if path.startswith(LOCAL_FILES):
        return unquote(path.removeprefix(LOCAL_FILES))
    if found := re.fullmatch(r"/data/upload/\d+/[0-9a-f]{8}-(.+)", path):
        return unquote(found[1])
    return path if path == address else unquote(re.split("[?#]", path)[0].lstrip("/"))


def _annotations(
    result: Any, image: AnnotatedImage, defaults: Mapping[str, Any], counts: Counter[str], *, where: str
) -> Iterator[Annotation]:
    """Yield one annotation for each label of a result."""
    kind = str(result.get("type"))[:40] if isinstance(result, Mapping) else ""
    if kind == "relation":  # of two regions; it has no value
        counts[kind] += 1
        return
    value = field(result, "value", Mapping, where=where)
    where = f"{where}: result {result.get('id', '')}"
    labels = next((value[name] for name in _LABELS if name in value), None)
    is_region = any(name in value for name in _PLACES)
    is_shape = any(name in value for name in ("rle", "points", "height", "rectanglelabels"))  # a point has no height
    known = not is_region if "choices" in value else is_shape
    if labels is None or not known or result.get("image_rotation") or "ellipselabels" in value:
        counts[f"{kind} of a region" if "choices" in value else kind] += 1
        return
    if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
        raise FovealError(f"{where}: labels that are no list of names; correct it")
    if not labels:
        counts[f"{kind} without a label"] += 1
        return
    mask, box = _shape(value, image, where=where) if is_region else (None, None)
    score = result.get("score", defaults["score"])
    for name in labels:
        one = Annotation(
            image.uri,
            name,
            mask,
            box,
            state=defaults["state"],
            source="imported",
            score=None if score is None else number(score, where=where),
        )
        yield restored(one, result.get("meta"))


def _shape(value: Mapping[str, Any], image: AnnotatedImage, *, where: str) -> tuple[Mask | None, Box | None]:
    if "rle" in value:
        runs = field(value, "rle", list, where=where)
        return Mask.of(decode_brush(runs, image.height, image.width, where=where)), None
    sides = np.array([image.width, image.height]) / 100
    if "points" in value:
        outline = points(value["points"], where=where) * sides
        if len(outline) < 3:
            raise FovealError(f"{where}: {len(outline)} points, which are no polygon; correct it")
        return mask_of([outline], image.height, image.width, where=where), None
    corner, size = (
        np.array([number(value.get(name), where=where) for name in names]) * sides
        for names in (("x", "y"), ("width", "height"))
    )
    if not (turn := number(value.get("rotation") or 0, where=where)):
        return None, Box(*np.round([*corner, *size], _DECIMALS).tolist())
    angle = math.radians(turn)  # clockwise, around the upper left corner
    across = np.array([math.cos(angle), math.sin(angle)]) * size[0]
    down = np.array([-math.sin(angle), math.cos(angle)]) * size[1]
    outline = np.array([corner, corner + across, corner + across + down, corner + down])
    return mask_of([outline], image.height, image.width, where=where), None
