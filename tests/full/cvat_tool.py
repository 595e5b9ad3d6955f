"""Runs inside CVAT's environment: its driver annotates pictures by a project, and its other half reads our file.

Arguments: the folder of `annotation_tools_project`, and the packages that foveal needs. Writes FOLDER/cvat.json.
"""

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from cvat_sdk import auto_annotation, models
from cvat_sdk.auto_annotation import driver
from cvat_sdk.masks import decode_mask
from datumaro.components.dataset import Dataset
from PIL import Image

sys.path.append(sys.argv[2])

from foveal.annotate.adapters.cvat import create

FOLDER = Path(sys.argv[1])
ASKED = ["red/18.png", "blue/18.png"]


class Media:
    def __init__(self, path: Path) -> None:
        self.path = path

    def load_image(self) -> Image.Image:
        return Image.open(self.path)


def task(names: list[str], types: dict[str, str]) -> SimpleNamespace:
    """What the driver downloads of a task; the server is the only part that is not CVAT's own."""
    labels = [
        SimpleNamespace(id=100 + place, name=name, type=kind, attributes=[], sublabels=[])
        for place, (name, kind) in enumerate(types.items())
    ]
    samples = [
        SimpleNamespace(frame_index=place, frame_name=name, media=Media(FOLDER / "pictures" / name))
        for place, name in enumerate(names)
    ]
    return SimpleNamespace(labels=labels, samples=samples)


def annotated(function: object, types: dict[str, str], **options: object) -> dict[str, list[object]]:
    sent = {}
    api = SimpleNamespace(update_annotations=lambda _, labeled_data_request: sent.update(data=labeled_data_request))
    client = SimpleNamespace(logger=logging.getLogger("cvat"), tasks=SimpleNamespace(api=api))
    with mock.patch.object(driver, "TaskDataset", return_value=task(ASKED, types)):
        auto_annotation.annotate_task(client, 1, function, clear_existing=True, **options)
    data = sent["data"]
    assert isinstance(data, models.LabeledDataRequest)
    return {
        "tags": [[one.frame, one.label_id, str(one.source)] for one in data.tags],
        "shapes": [[one.frame, one.label_id, one.type.value] for one in data.shapes],
        "masks": [_pixels(one).astype(int).tolist() for one in data.shapes if one.type.value == "mask"],
    }


def _pixels(shape: object) -> np.ndarray:
    return decode_mask(shape.points, image_width=56, image_height=56)


def refusal(**options: object) -> str:
    try:
        create(str(FOLDER / "project"), str(FOLDER / "model"), **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


place = {"project": str(FOLDER / "project"), "model": str(FOLDER / "model")}
anything, masks = {"red": "any", "blue": "any"}, {"red": "mask", "blue": "mask"}
found = {
    "both": annotated(create(**place, precision=0.6), anything),
    "masks": annotated(create(**place, precision=0.6, kind="masks"), masks),
    "polygons": annotated(create(**place, precision=0.6), anything, conv_mask_to_poly=True),
    "certain": annotated(create(**place, precision=0.6), anything, conf_threshold=1.0),
    "unsure": annotated(create(**place, precision=0.99), anything),
    "refusal": refusal(kind="mask"),
}
items = list(Dataset.import_from(str(FOLDER / "exports/cvat"), "cvat"))
found["file"] = {
    f"{item.id}.png": [one.image.astype(int).tolist() for one in item.annotations if one.type.name == "mask"]
    for item in items
}
found["boxes"] = [list(one.points) for item in items for one in item.annotations if one.type.name == "bbox"]
(FOLDER / "cvat.json").write_text(json.dumps(found))
