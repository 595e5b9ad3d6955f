"""Runs inside Label Studio's environment: its own client asks `foveal backend`, its SDK judges answers and reads files.

Arguments: the folder of `annotation_tools_project`, the address of the backend, and its password. Writes
FOLDER/label_studio.json. Of Label Studio itself only the client of backends is loaded: the module that its server sends
requests with. What surrounds that, Django and its database, is left out.
"""

import importlib.util
import json
import sys
from datetime import datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface
from requests.adapters import HTTPAdapter

FOLDER, ADDRESS, PASSWORD = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
SURROUNDINGS = (
    "core", "core.feature_flags", "core.utils", "core.utils.common", "core.utils.exceptions", "core.utils.io",
    "core.version", "data_export", "data_export.serializers", "django", "django.conf", "django.contrib",
    "django.contrib.auth", "django.contrib.auth.models", "django.db", "django.db.models", "label_studio.core",
    "label_studio.core.utils", "label_studio.core.utils.params",
)  # fmt: skip


def client_module() -> ModuleType:
    folder = Path(importlib.util.find_spec("label_studio").submodule_search_locations[0])  # type: ignore
    spec = importlib.util.spec_from_file_location("api_connector", folder / "ml/api_connector.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    around: dict[str, Any] = {name: mock.MagicMock() for name in (*SURROUNDINGS, "label_studio")}
    around["core.version"].get_git_version = lambda: "1"
    around["core.utils.exceptions"].SsrfBlockedUrlError = type("SsrfBlockedUrlError", (Exception,), {})
    around["core.utils.io"].SsrfSafeHTTPAdapter = HTTPAdapter
    around["label_studio.core.utils.params"].get_env = lambda _, default: default
    around["django.conf"].settings = SimpleNamespace(ML_BLOCK_LOCAL_IP=False, HOSTNAME="http://here", INTERNAL_PORT="1")
    around["core.utils.common"].load_func = lambda made: made
    around["django.conf"].settings.WEBHOOK_SERIALIZERS = {"project": lambda instance: SimpleNamespace(data={"id": 1})}
    around["core.feature_flags"].flag_set = lambda *_: True
    with mock.patch.dict(sys.modules, around):
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def task(uri: str) -> dict[str, Any]:
    return {"id": 7, "data": {"image": f"/data/local-files/?d=pictures/{uri}"}, "annotations": [], "predictions": []}


config = (FOLDER / "exports/label-studio/label_config.xml").read_text()
interface = LabelInterface(config)
interface.validate()
owner = SimpleNamespace(auth_token=SimpleNamespace(key="key"))
project = SimpleNamespace(
    id=1,
    created_at=datetime(2026, 1, 1),
    label_config=config,
    task_data_login="",
    task_data_password="",
    created_by=owner,
)
api = client_module().MLApi(url=ADDRESS, auth_method="basic", basic_auth_user="foveal", basic_auth_pass=PASSWORD)
stranger = client_module().MLApi(url=ADDRESS)
found: dict[str, Any] = {
    "health": api.health().response,
    "setup": api.setup(project).response,
    "stranger": stranger.make_predictions([task("red/18.png")], project).status_code,
}
asked = api.make_predictions([task(uri) for uri in ("red/18.png", "blue/18.png", "elsewhere/18.png")], project)
assert not asked.is_error, asked.error_message
predictions = asked.response["results"]
found["valid"] = [interface.validate_prediction(one, return_errors=True) for one in predictions]
found["choices"] = [
    [result["value"]["choices"] for result in one["result"] if result["type"] == "choices"] for one in predictions
]
found["scores"] = [one["score"] for one in predictions]


def painted(result: dict[str, Any]) -> list[list[int]]:
    values = decode_rle(result["value"]["rle"])
    return (values.reshape(56, 56, 4)[:, :, 3] > 127).astype(int).tolist()


found["masks"] = [
    [painted(result) for result in one["result"] if result["type"] == "brushlabels"] for one in predictions
]
rows, columns = np.nonzero(found["masks"][0][0])
place = {"x": columns.mean() / 56 * 100, "y": rows.mean() / 56 * 100, "width": 0.5, "keypointlabels": ["red"]}
context = {"result": [{"type": "keypointlabels", "value": place, "is_positive": True}]}
clicked = api.make_predictions([task("red/18.png")], project, context=context).response["results"]
found["valid"] += [interface.validate_prediction(one, return_errors=True) for one in clicked]
found["clicked"] = painted(clicked[0]["result"][0])
submitted = {"id": 3, "result": predictions[0]["result"]}
event = {"action": "ANNOTATION_CREATED", "task": task("red/18.png"), "annotation": submitted, "project": {"id": 1}}
found["webhook"] = api._request("webhook", event).response
found["train"] = api.train(project).response
found["versions"] = api.get_versions(project).response
again = {**event, "task": task("blue/18.png"), "annotation": {"id": 4, "result": predictions[1]["result"]}}
found["again"] = api._request("webhook", again).response
deleted = {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 4}], "project": {"id": 1}}
found["deleted"] = api._request("webhook", deleted).response
tasks = json.loads((FOLDER / "exports/label-studio/tasks.json").read_text())
found["file"] = {
    one["data"]["image"].partition("?d=")[2]: [
        painted(result) for result in one["annotations"][0]["result"] if result["type"] == "brushlabels"
    ]
    for one in tasks
}
found["tasks"] = [interface.validate_annotation(one["annotations"][0]) for one in tasks]
(FOLDER / "label_studio.json").write_text(json.dumps(found))
