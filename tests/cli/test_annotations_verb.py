"""`foveal annotations`: from one tool's files to another's, in and out of a project."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.annotate.project import Project
from foveal.annotate.types import Annotation, Mask
from foveal.cli.main import main
from foveal.images.imageset import ImageSet


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (7, 5), (200, 30, 20)).save(folder / name)
    return folder


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    path = tmp_path / "coco.json"
    content = {
        "images": [{"id": 1, "file_name": "somewhere/pictures/a.png", "width": 7, "height": 5}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]],
                "bbox": [1, 1, 3, 2],
            },
            {"id": 2, "image_id": 1, "category_id": 1, "iscrowd": 1},
        ],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("format", ["coco", "label-studio", "cvat", "fiftyone"])
def test_a_folder_may_be_called_as_a_file_is(tmp_path: Path, coco: Path, format: str) -> None:
    for name in ("out.json", "out.xml"):
        assert main(["annotations", str(coco), str(tmp_path / name), "--to", format]) == 0
        assert main(["annotations", str(tmp_path / name), str(tmp_path / f"again-{name}"), "--to", "coco"]) == 0
        assert json.loads((tmp_path / f"again-{name}/annotations/instances_default.json").read_text())["annotations"]


def test_coco_to_yolo_with_its_pictures(
    tmp_path: Path, coco: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--to", "yolo", "--images", str(pictures), "--copy-images"]
    assert main(["annotations", str(coco), str(out), *options]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        f"wrote {out}: 1 pictures, 1 classes",
        "note: 1 crowds are left out: they show several things",
    ]
    values = (out / "labels/train/a.txt").read_text().split()
    assert [round(float(value), 5) for value in values] == [0, round(2.5 / 7, 5), 0.4, round(3 / 7, 5), 0.4]
    assert (out / "images/train/a.png").read_bytes() == (pictures / "a.png").read_bytes()


def test_in_and_out_of_a_project(
    tmp_path: Path, coco: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Project.create(tmp_path / "project", ImageSet.open(pictures)) as project:
        project.write([], states={"b.png": "done"})
    assert (
        main(["annotations", str(coco), str(tmp_path / "project"), "--to", "project", "--images", str(pictures)]) == 0
    )
    again = ["annotations", str(coco), str(tmp_path / "project"), "--to", "project", "--images", str(pictures)]
    assert main(again) == 0
    assert "added 0 annotations" in capsys.readouterr().out.splitlines()[-2]
    expected = np.zeros((5, 7), bool)
    expected[1:3, 1:4] = True
    with Project.open(tmp_path / "project") as project:
        (record,) = project.annotations()
        assert (record.annotation.image, record.annotation.class_name) == ("a.png", "cat")
        assert record.annotation.source == "imported"
        project.add_class("dog")
        project.propose([Annotation("a.png", "dog", state="unsure", source="propagated")])
        Project.create(tmp_path / "second", project.image_set).close()
    second = [str(tmp_path / "project"), str(tmp_path / "second"), "--to", "project"]
    assert main(["annotations", *second, "--fields", "a"]) == 2
    assert main(["annotations", *second, "--states", "accepted"]) == 0
    assert "note: 1 annotations are left out, which are not accepted" in capsys.readouterr().out
    with Project.open(tmp_path / "second") as project:
        assert [one.annotation.image for one in project.annotations()] == ["a.png"]
    assert main(["annotations", str(tmp_path / "project"), str(tmp_path / "out"), "--to", "coco", "--copy-images"]) == 0
    written = json.loads((tmp_path / "out/annotations/instances_default.json").read_text())
    assert [one["name"] for one in written["categories"]] == ["cat", "dog"]
    assert [one["file_name"] for one in written["images"]] == ["a.png", "b.png"]
    runs = written["annotations"][0]["segmentation"]
    assert (Mask(5, 7, runs["counts"].encode()).pixels() == expected).all()
    assert (tmp_path / "out/images/default/b.png").is_file()
    pictures.rename(tmp_path / "moved")
    assert main(["annotations", str(tmp_path / "project"), str(tmp_path / "without pictures"), "--to", "voc"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["coco.json", "out", "--to", "yollo"], "'yollo' is no format that can be written; did you mean 'yolo'"),
        (["coco.json", "out", "--to", "yolo", "--from", "voc"], "'voc' is no format that can be read"),
        (["nothing.json", "out", "--to", "yolo"], "nothing.json does not exist"),
        (
            ["coco.json", "out", "--to", "yolo", "--states", "accept3d"],
            "'accept3d' is no state; did you mean 'accepted'",
        ),
        (["coco.json", "out", "--to", "yolo", "--polygons"], "polygons=True is COCO's choice"),
        (["coco.json", "out", "--to", "yolo", "--copy-images"], "name the image set too"),
        (["coco.json", "pictures", "--to", "yolo"], "pictures exists; choose another place"),
        (["coco.json", "pictures", "--to", "project"], "pictures is no annotation project"),
        (["coco.json", "pictures", "--to", "project", "--polygons"], "--polygons has no effect on --to project"),
        (
            ["coco.json", "out", "--to", "yolo", "--fields", "cat"],
            "fields are of FiftyOne's samples, and coco has none",
        ),
    ],
)
def test_faults_are_said_in_words(
    tmp_path: Path,
    coco: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    coco.write_text(coco.read_text().replace("somewhere/pictures/", ""))
    assert main(["annotations", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
