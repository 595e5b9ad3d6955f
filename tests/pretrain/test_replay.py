"""A step that was not finite is run again to the bit, and names the tensor in which it begins."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from foveal.cli.main import main
from foveal.errors import DivergedError, RunError
from foveal.pretrain.learner import SelfDistillation
from foveal.pretrain.loop import pretrain
from foveal.pretrain.recipe import Recipe
from foveal.pretrain.replay import Replayed, replay
from foveal.pretrain.trace import traced


def _replayed(recipe: Recipe) -> tuple[Path, Replayed]:
    with pytest.raises(DivergedError, match="foveal replay"):
        pretrain(recipe)
    (path,) = (Path(recipe.out) / "replay").iterdir()
    return path, replay(path)


def _plant(monkeypatch: pytest.MonkeyPatch, plant: Callable[[SelfDistillation], None]) -> None:
    """Change the weights with which a run starts; a replay has to take them from its file."""
    build = SelfDistillation.__init__

    def planted(self: SelfDistillation, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        with torch.no_grad():
            plant(self)

    learner = type("P", (SelfDistillation,), {"__init__": planted})
    monkeypatch.setattr("foveal.pretrain.distillation.learner.SelfDistillation", learner)


def test_an_infinite_weight_is_named_first(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def plant(learner: SelfDistillation) -> None:
        learner.student.backbone.blocks[1].mlp.fc2.weight[2, 3] = float("inf")  # type: ignore[union-attr,operator,index]

    _plant(monkeypatch, plant)
    path, found = _replayed(tiny())
    assert path.name == "step_00000002.safetensors"
    assert found.step == 2
    assert found.is_same
    assert not np.isfinite(found.found["loss"])
    assert found.found.keys() == {"loss", "dino_local", "dino_global", "ibot", "koleo"} | {
        f"grad_norm_{name}" for name in ("backbone", "dino_head", "ibot_head")
    }
    weight, output, *rest = map(str, found.findings)
    assert weight == "weight of student backbone.blocks.1.mlp.fc2.weight: 1 of 9,216 numbers"
    assert output.startswith("output of student backbone.blocks.1.mlp.fc2: ")
    assert any(line.startswith("gradient of student ") for line in rest)
    assert not any("teacher" in line for line in [weight, output, *rest])
    assert found.blamed == found.images  # whichever image it is


@pytest.fixture
def one_white(tmp_path: Path) -> Path:
    """A set of which every batch of 4 shows all 4: black but for one."""
    folder = tmp_path / "pixels"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(np.full((32, 32, 3), 255 * (number == 2), np.uint8)).save(folder / f"{number}.png")
    return folder


def test_an_image_that_overflows_is_named(tiny: Any, one_white: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """White pixels are 1 and black ones 0 here: 192 weights of 1e37 overflow on a white patch alone."""

    def plant(learner: SelfDistillation) -> None:
        for network in (learner.student, learner.teacher):
            network.backbone.patch_embed["proj"].weight[5] = 1e37

    _plant(monkeypatch, plant)
    settings = [f"images={one_white}", "normalise.mean=[0, 0, 0]", "normalise.std=[1, 1, 1]"]
    settings += ["views.solarize_probability=0", "views.jitter_probability=0", "masks.probability=0"]
    _, found = _replayed(tiny(*settings))
    assert found.is_same
    assert sorted(found.images) == [f"{number}.png" for number in range(4)]
    assert found.blamed == ["2.png"]
    assert str(found.findings[0]).startswith("input of teacher backbone.blocks.0: ")
    row = found.images.index("2.png")
    sheet = np.asarray(found.sheet)
    height = sheet.shape[0] / 4
    framed = [(sheet[round(n * height) : round((n + 1) * height)] == (200, 50, 40)).all(-1).any() for n in range(4)]
    assert framed == [number == row for number in range(4)]


def test_the_verb_prints_and_draws(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plant(learner: SelfDistillation) -> None:
        learner.student.dino_head.last_layer["weight_v"][3, 1] = float("nan")

    _plant(monkeypatch, plant)
    path, _ = _replayed(tiny("precision=fp32"))
    assert main(["replay", str(path), "--out", str(tmp_path / "crops.png")]) == 0
    out = capsys.readouterr().out
    assert "step 2, 4 images" in out
    assert "as the run had it, and now: the same to the last bit" in out
    assert "not finite, in order:\n  weight of student dino_head.last_layer.weight_v: 1 of 128 numbers" in out
    assert "loss\tnan\tnan" in out
    with Image.open(tmp_path / "crops.png") as sheet:
        assert sheet.height > 4 * 90


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot be read: .*give RUN/replay/step_N.safetensors"):
        replay(tmp_path / "none")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(RunError, match="is not a step to replay"):
        replay(tmp_path / "other")


def test_gradients_are_found_where_values_are_finite() -> None:
    """The square root of 0 is finite, its derivative is not."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.scale * x).sqrt()

    root = Root()
    with traced({"net": nn.Sequential(root)}) as findings:
        root(torch.ones(2)).sum().backward()
    assert [str(finding) for finding in findings] == ["gradient of net 0.scale: 2 of 2 numbers"]
    with traced({"net": nn.Sequential(root)}) as findings:
        root(torch.ones(2))
    assert findings == []
