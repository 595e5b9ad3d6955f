"""Label Studio, CVAT and FiftyOne themselves: their clients, drivers and datasets use a project, and read our files."""

import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotation_tools_project import COLOURS, NUM_LABELLED, make_project
from child import output_of
from environments import ROOT, layered

from foveal.annotate.project import Project

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]


class Made:
    """A project's folder, and the mask of each of its pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.masks = folder, make_project(folder)

    def iou(self, uri: str, mask: list[list[int]]) -> float:
        found, truth = np.array(mask, bool), self.masks[uri]
        return float((found & truth).sum() / (found | truth).sum())


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def environment(name: str) -> Path:
    file = ROOT / f"tests/full/{name}_constraints.txt"
    return layered(name.replace("_", "-"), "--no-deps", f"--requirement={file}", constraints=[file], alone=True)


def run(name: str, folder: Path, *more: str) -> dict[str, Any]:
    command = [environment(name), ROOT / f"tests/full/{name}_tool.py", folder, *more]
    settings = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    output_of(command, cwd=folder, env=settings, timeout_s=240)
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def test_cvats_driver_annotates_by_a_project_and_its_reader_takes_our_file(made: Made) -> None:
    found = run("cvat", made.folder, sysconfig.get_path("purelib"))
    assert found["both"]["tags"] == [[0, 100, "auto"], [1, 101, "auto"]]
    assert found["both"]["shapes"] == found["masks"]["shapes"] == [[0, 100, "mask"], [1, 101, "mask"]]
    assert found["masks"]["tags"] == []
    assert [kind for _, _, kind in found["polygons"]["shapes"]] == ["polygon", "polygon"]
    for uri, mask in zip(("red/18.png", "blue/18.png"), found["both"]["masks"], strict=True):
        assert made.iou(uri, mask) > 0.6
    for one in ("certain", "unsure"):
        assert found[one]["tags"] == found[one]["shapes"] == []
    assert found["refusal"].startswith("FovealError: kind='mask'; did you mean 'masks'")
    assert len(found["file"]) == NUM_LABELLED * len(COLOURS)
    assert all(made.iou(uri, mask) == 1 for uri, [mask] in found["file"].items())
    assert found["boxes"] == [[1.5, 2, 11.5, 9.25]]


def test_fiftyones_datasets_take_features_and_annotations_and_read_our_files(made: Made) -> None:
    found = run("fiftyone", made.folder, sysconfig.get_path("purelib"))
    assert found["num_features"] == len(made.masks)
    assert found["worst"] == 0
    assert found["near"][0] == found["query"]
    assert all(Path(path).parent.name == Path(found["query"]).parent.name for path in found["near"])
    assert found["num_annotated"] == NUM_LABELLED * len(COLOURS)
    assert found["same"]
    assert found["notes"] == []
    assert sum(len(one) for one in found["fiftyone"].values()) == NUM_LABELLED * len(COLOURS)
    for uri, [size] in found["fiftyone"].items():
        assert size == made.masks[uri].sum()
    for uri, labels in found["coco"].items():
        [name, (x, y, width, height), size] = next(one for one in labels if one[0] == uri.partition("/")[0])
        rows, columns = np.nonzero(made.masks[uri])
        assert (name, size) == (uri.partition("/")[0], made.masks[uri].sum())
        np.testing.assert_allclose(np.array([x, y, width, height]) * 56, [columns.min(), rows.min(), 21, 21], atol=1e-6)


@pytest.fixture
def backend(made: Made) -> Iterator[tuple[str, str]]:
    """The address and password of `foveal backend`, which at the end has to stop in good order."""
    command = [sys.executable, "-m", "foveal", "backend", "project", "--model=model", "--port=0", "--precision=0.6"]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    with (made.folder / "out").open("w") as out, (made.folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=made.folder, stdout=out, stderr=log, env=settings)
    try:
        ends = time.monotonic() + 120
        while "password" not in (said := (made.folder / "out").read_text()):
            assert process.poll() is None, (made.folder / "log").read_text()
            assert time.monotonic() < ends, (made.folder / "log").read_text()
            time.sleep(0.1)
        first, second = said.splitlines()[:2]
        yield first.removeprefix("backend at "), second.rpartition(" ")[2]
        process.terminate()
        assert process.wait(timeout=60) == 0, (made.folder / "log").read_text()
        assert "Traceback" not in (made.folder / "log").read_text()
    finally:
        process.kill()
        process.wait()


def test_label_studios_client_is_answered_and_its_sdk_takes_answers_and_files(
    made: Made, backend: tuple[str, str]
) -> None:
    found = run("label_studio", made.folder, *backend)
    assert found["health"]["status"] == "UP"
    assert found["setup"]["model_version"].startswith("foveal-")
    assert found["stranger"] == 401
    assert found["valid"] == [[], [], [], []]
    assert made.iou("red/18.png", found["clicked"]) > 0.5
    assert found["choices"] == [[["red"]], [["blue"]], []]
    assert min(found["scores"][:2]) > 0.6
    assert found["scores"][2] == 0
    for uri, masks in zip(("red/18.png", "blue/18.png"), found["masks"], strict=False):
        assert made.iou(uri, masks[0]) > 0.6
    assert found["webhook"]["num_taken"] == 2
    assert found["train"]["model_version"] == found["versions"]["versions"][0] == found["webhook"]["model_version"]
    assert found["webhook"]["model_version"] != found["setup"]["model_version"]
    assert (found["again"]["num_taken"], found["deleted"]["num_removed"]) == (2, 2)
    with Project.open(made.folder / "project") as project:
        assert project.annotations("blue/18.png") == ()
        taken = [one.annotation for one in project.annotations("red/18.png")]
    assert [(one.class_name, one.state, one.mask is None) for one in taken] == [
        ("red", "accepted", True),
        ("red", "accepted", False),
    ]
    assert all(found["tasks"])
    assert len(found["file"]) == NUM_LABELLED * len(COLOURS)
    assert all(made.iou(uri, mask) == 1 for uri, [mask] in found["file"].items())
