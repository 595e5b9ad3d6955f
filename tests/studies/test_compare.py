"""Two models beside each other: the numbers are those of each protocol alone, and the page shows them."""

import csv
from functools import partial
from pathlib import Path

import pytest
import torch

from foveal.backbone.parameters import backbone_parameters
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card, save_model
from foveal.cli.main import main
from foveal.evaluate.knn import run as run_knn
from foveal.evaluate.layouts.classification import open_classification
from foveal.evaluate.linear_cached import run as run_linear_cached
from foveal.features.extract import load
from foveal.studies.compare import PAGE, PROTOCOLS, compare, table


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    folders = []
    for seed, width in enumerate((48, 96)):
        config = backbone_config("vit_nano", width=width, depth=1, patch_size=7, image_size=28, layerscale_init=1.0)
        backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(seed))
        folders.append(str(tmp_path / f"w{width}"))
        card = Card(name=f"w{width}", backbone=config, crop_size=28, resize_size=32)
        save_model(Path(folders[-1]), backbone, card)
    return folders


def test_numbers_are_those_of_the_protocols_alone(models: list[str], colours: Path) -> None:
    data = open_classification(str(colours))
    opened = [(folder, load(folder, engine="torch")) for folder in models]
    seen: set[tuple[str, str]] = set()
    found = compare(opened, data, protocols=["knn"], listener=lambda model, protocol, *_: seen.add((model, protocol)))
    assert seen == {(folder, "knn") for folder in models}
    for one, (_, model) in zip(found, opened, strict=True):
        assert one.measures["knn"] == run_knn(model, data.train, data.test, ks=[20])
        assert one.million_parameters == backbone_parameters(model.card.backbone) / 1e6
    assert found[0].million_parameters < found[1].million_parameters
    assert found[0].gflop < found[1].gflop
    header, rows = table(found)
    assert header[:2] == ["model", "knn-20 top-1"]
    assert [row[0] for row in rows] == ["w48", "w96"]
    assert all(len(row) == len(header) for row in rows)


def test_linear_classifiers_can_be_compared_too(
    models: list[str], colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROTOCOLS, "linear-cached", partial(PROTOCOLS["linear-cached"], num_steps=9))
    command = ["compare", *models, f"--data={colours}", f"--out={tmp_path}", "--engine=torch"]
    assert main([*command, "--protocol=linear-cached"]) == 0
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "top-1"]
    data = open_classification(str(colours))
    (top1, *_) = run_linear_cached(load(models[1], engine="torch"), data.train, data.test, num_steps=9)
    assert [(row["model"], row["protocol"]) for row in rows] == [("w48", "linear-cached"), ("w96", "linear-cached")]
    assert float(rows[1]["value"]) == top1.value


def test_command_line(models: list[str], colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "comparison"
    command = ["compare", *models, f"--data={colours}", f"--out={out}", "--engine=torch"]
    assert main(command) == 0
    header, *lines = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert [line[0] for line in lines] == ["w48", "w96"]
    assert "logistic top-1" in header
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["model"], row["protocol"]) for row in rows} == {
        (model, protocol) for model in ("w48", "w96") for protocol in ("knn", "logistic")
    }
    value = next(row["value"] for row in rows if row["protocol"] == "logistic" and row["metric"] == "top-1")
    assert lines[0][header.index("logistic top-1")].startswith(f"{float(value):.2f} ±")
    page = (out / PAGE).read_text()
    assert all(f"<td>{cell}</td>" in page for cell in lines[1])
    assert "data:image/png;base64," in page


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda models: models[:1], "one model cannot be compared"),
        (lambda models: [*models, models[0]], "is given twice"),
        (lambda models: [*models, "--protocol=linear"], "protocol 'linear' cannot be compared; choose of knn"),
        (lambda models: [*models, "--split=0.5"], "--split has no effect"),
    ],
)
def test_bad_choices_are_refused(
    change: object, said: str, models: list[str], colours: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *change(models), f"--data={colours}"]) == 2  # type: ignore[operator]
    assert said in capsys.readouterr().err
