"""`foveal propagate`: labels and masks of a few pictures to all others, on the real command line."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.annotate.project import Project
from foveal.cli.main import main
from foveal.features.origin import identity_of
from foveal.features.store import FeatureStore
from foveal.images.imageset import ImageSet


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """Twelve dark and twelve bright pictures, and a file of labels for two thirds of them."""
    generator = np.random.default_rng(0)
    lines = ["uri,label"]
    for number in range(24):
        path = tmp_path / "shades" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        level = 200 if number % 2 else 20
        Image.fromarray(generator.integers(level, level + 40, (31, 43, 3), dtype=np.uint8)).save(path)
        if number < 16:
            lines.append(f"{path.name},{'bright' if number % 2 else 'dark'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "shades"


def run(*words: object) -> int:
    return main(["propagate", *map(str, words)])


def test_labels_become_proposals_in_a_project_and_a_table(
    shades: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ["--from", tmp_path / "labels.csv", "--model", model_folder, "--precision", "0.5"]
    assert run(shades, *known, "--out", tmp_path / "project") == 0
    out = capsys.readouterr().out
    assert "16 labels of 2 classes, 8 images without one: 8 proposed, 0 unsure" in out
    assert "each label held out in turn: top-1 100.00 %" in out
    assert "a precision of 50 % was asked for: 16 of 16 held-out answers are at the threshold" in out
    with Project.open(tmp_path / "project") as project:
        proposed = [one.annotation for one in project.annotations(states=("proposed",))]
        assert project.labels().names == ("dark", "bright") * 8
    assert [(one.image, one.class_name) for one in proposed] == [
        (f"{number}.png", "bright" if number % 2 else "dark") for number in range(16, 24)
    ]
    assert run(shades, *known, "--out", tmp_path / "out" / "labels.csv", "--to", "csv") == 0
    rows = list(csv.DictReader((tmp_path / "out" / "labels.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["accepted"] * 16 + ["proposed"] * 8
    assert run(shades, *known, "--out", tmp_path / "coco", "--to", "label-studio") == 0


def test_a_store_of_the_set_is_used_and_one_of_another_model_or_other_images_refused(
    shades: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    assert main(["extract", str(shades), "--model", str(model_folder), "--out", str(store)]) == 0
    known = ["--from", tmp_path / "labels.csv", "--store", store]
    assert run(shades, *known, "--out", tmp_path / "project") == 0
    assert "0 proposed, 8 unsure" in capsys.readouterr().out  # 16 are too few for 90 %
    with Project.open(tmp_path / "project") as project:
        assert project.model == identity_of(FeatureStore.open(store))
    foreign = {"name": "another", "sha256": "0" * 64}
    with Project.create(tmp_path / "theirs", ImageSet.open(shades)) as project:
        project.add_class("dark")
        project.label("00.png", "dark")
        with project._database.writing() as connection:
            facts = {"model_name": foreign["name"], "model_sha256": foreign["sha256"]}
            connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
    assert run(shades, "--from", tmp_path / "theirs", "--store", store, "--out", tmp_path / "other") == 2
    assert "was made with the model another" in capsys.readouterr().err
    assert run(shades, *known, "--out", tmp_path / "theirs") == 2
    assert "was made with the model another" in capsys.readouterr().err
    Image.new("RGB", (31, 43)).save(shades / "03.png")
    assert run(shades, *known, "--out", tmp_path / "changed") == 2
    assert "1 images have changed since" in capsys.readouterr().err
    assert not (tmp_path / "changed").exists()


def test_masks_are_looked_for_and_followed(
    shades: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "left half"
    masks.mkdir()
    ids = np.zeros((31, 43), np.uint8)
    ids[:, :20] = 255
    for number in (0, 1):
        Image.fromarray(ids).save(masks / f"0{number}.png")
    known = ["--from", masks, "--model", model_folder]
    assert run(shades, *known, "--out", tmp_path / "project") == 0
    out = capsys.readouterr().out
    assert "2 masks of 1 classes, 22 images without one: 0 masks proposed" in out
    assert "left half: a precision of 80 % at IoU 0.5 was asked for: " in out
    assert run(shades, *known, "--out", tmp_path / "video", "--video") == 0
    with Project.open(tmp_path / "video") as project:
        found = [one.annotation for one in project.annotations(states=("unsure",))]
    assert {one.track for one in found} == {"left half"}
    assert not {one.image for one in found} & {"00.png", "01.png"}  # these were given


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--from", "none.csv", "--out", "new"], "none.csv does not exist"),
        (["--from", "labels.csv", "--out", "new"], "give --store, or --model to compute them"),
        (["--from", "labels.csv", "--out", "new", "--to", "coko"], "did you mean 'coco'"),
        (["--from", "labels.csv", "--out", "shades"], "already exists and is not empty"),
        (["--from", "labels.csv", "--out", "new", "--precision", "90"], "precision=90"),
        (["--from", "labels.csv", "--out", "new", "--video"], "--video has no effect on labels"),
        (["--from", "labels.csv", "--out", "new", "--of", "masks"], "has no accepted masks"),
        (["--from", "shades/00.png", "--out", "new"], "is one mask; give the folder"),
        (["--from", "labels.csv", "--out", "labels.csv", "--to", "csv"], "labels.csv exists; choose another place"),
        (["--from", "labels.csv", "--out", "new", "--token", "cls"], "--token names vectors of a store"),
        (["--from", "labels.csv", "--out", "labels.csv/new"], "labels.csv cannot be written to"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(
    shades: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(shades, *options) == 2
    assert words in capsys.readouterr().err
    assert not Path("new").exists()
