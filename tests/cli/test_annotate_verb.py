"""`foveal annotate`: what is refused before a model is loaded."""

from pathlib import Path

import pytest
from PIL import Image

from foveal.annotate.project import Project
from foveal.cli.main import main
from foveal.images.imageset import ImageSet


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new"], "new does not exist, and a new project needs its images: give --images SET"),
        (["photos"], "photos is no annotation project, it has no project.sqlite; give the folder of one, or a new one"),
        (["photos", "--images", "more"], "photos already exists and is not empty; choose another name"),
        (["photos/new", "--images", "photos"], "lies inside photos"),
        (["project"], "no-model is no file or folder here"),  # the project is right
    ],
)
def test_a_wrong_project_is_refused_before_its_model_is_looked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "more"):
        Path(folder).mkdir()
        Image.new("RGB", (7, 5)).save(f"{folder}/a.png")
    Project.create("project", ImageSet.open("photos")).close()
    assert main(["annotate", *arguments, "--model", "no-model"]) == 2
    assert words in capsys.readouterr().err
