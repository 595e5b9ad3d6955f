"""Runs inside FiftyOne's environment: its datasets take features and annotations, and read our files.

Arguments: the folder of `annotation_tools_project`, and the packages that foveal needs. Writes FOLDER/fiftyone.json.
FiftyOne keeps its data in MongoDB; unless FIFTYONE_DATABASE_URI names one, mongomock holds them in memory instead.
"""

# ruff: noqa: E402 (FiftyOne connects as it is imported)
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

IS_REAL = "FIFTYONE_DATABASE_URI" in os.environ
os.environ.setdefault("FIFTYONE_DATABASE_URI", "mongodb://localhost")
os.environ["FIFTYONE_DO_NOT_TRACK"] = "1"


def hold_in_memory() -> None:
    """Let FiftyOne connect to mongomock."""
    marks = types.ModuleType("sentinels")  # all that mongomock takes of that package
    marks.Sentinel = type("Sentinel", (), {"__init__": lambda self, name: None})  # type: ignore[attr-defined]
    marks.NOTHING = marks.Sentinel("NOTHING")  # type: ignore[attr-defined]
    sys.modules.setdefault("sentinels", marks)
    import mongoengine.connection
    import mongomock
    import mongomock.aggregate
    import mongomock.gridfs
    import pymongo

    class Client(mongomock.MongoClient):  # type: ignore[misc]
        _closed = False

        def server_info(self) -> dict[str, Any]:
            return {"version": "7.0.0", "versionArray": [7, 0, 0, 0]}

    known = mongomock.aggregate._Parser._handle_array_operator

    def with_index(self: Any, operator: str, values: Any) -> Any:
        """The one operator of views in an order of their own that mongomock lacks."""
        if operator != "$indexOfArray":
            return known(self, operator, values)
        array, wanted = (self.parse(value) for value in values)
        return array.index(wanted) if wanted in array else -1

    mongomock.aggregate._Parser._handle_array_operator = with_index
    mongomock.gridfs.enable_gridfs_integration()
    only = Client()
    pymongo.MongoClient = mongoengine.connection.MongoClient = lambda *_args, **_options: only


if not IS_REAL:
    hold_in_memory()
import fiftyone
import numpy as np

sys.path.append(sys.argv[2])
from foveal.annotate.adapters.fiftyone import add_annotations, add_features, read_dataset
from foveal.annotate.project import Project
from foveal.features.store import FeatureStore
from foveal.images.imageset import ImageSet

FOLDER = Path(sys.argv[1])
images = ImageSet.open(FOLDER / "pictures")
store = FeatureStore.open(FOLDER / "project/features")
dataset = fiftyone.Dataset("pictures")
paths = sorted((FOLDER / "pictures").rglob("*.png"), reverse=True)  # in another order than the store
dataset.add_samples([fiftyone.Sample(filepath=str(path)) for path in paths])
found: dict[str, Any] = {"num_features": add_features(dataset, store, images, similarity="foveal")}
rows = {uri: place for place, uri in enumerate(store.rows.column("uri").to_pylist())}
vectors = store.read("cls").astype(np.float32)
found["worst"] = max(
    float(
        np.abs(
            np.array(sample["foveal"])
            - vectors[rows[Path(sample.filepath).relative_to(FOLDER / "pictures").as_posix()]]
        ).max()
    )
    for sample in dataset
)
query = dataset.first()
near = dataset.sort_by_similarity(query.id, k=9, brain_key="foveal")
found["query"] = query.filepath
found["near"] = near.values("filepath")
with Project.open(FOLDER / "project") as project:
    annotated = project.to_set()
found["num_annotated"] = add_annotations(dataset, annotated)
back = read_dataset(dataset, ["foveal_detections", "foveal_labels"], images=images)


def content(annotations: Any) -> list[Any]:
    found = (
        [
            one.image,
            one.class_name,
            one.mask and one.mask.counts.decode("latin-1"),
            one.box and [*map(float, one.box)],
            one.state,
            one.source,
        ]
        for one in annotations
    )
    return sorted(found, key=str)


found["same"] = json.dumps(content(back.annotated.annotations)) == json.dumps(content(annotated.annotations))
found["notes"] = list(back.notes)
coco = fiftyone.Dataset.from_dir(
    dataset_type=fiftyone.types.COCODetectionDataset,
    data_path=str(FOLDER / "exports/coco/images/default"),
    labels_path=str(FOLDER / "exports/coco/annotations/instances_default.json"),
    label_types="segmentations",
)
found["coco"] = {
    Path(sample.filepath).relative_to(FOLDER / "exports/coco/images/default").as_posix(): [
        [one.label, one.bounding_box, int(one.mask.sum())]
        for one in sample["segmentations" if "segmentations" in sample else "ground_truth"].detections
        if one.mask is not None
    ]
    for sample in coco
}
ours = fiftyone.Dataset.from_dir(
    dataset_dir=str(FOLDER / "exports/fiftyone"), dataset_type=fiftyone.types.FiftyOneDataset
)
found["fiftyone"] = {
    Path(sample.filepath).relative_to(FOLDER / "exports/fiftyone/data").as_posix(): [
        int(one.mask.sum()) for one in sample.detections.detections if one.mask is not None
    ]
    for sample in ours
}
(FOLDER / "fiftyone.json").write_text(json.dumps(found))
