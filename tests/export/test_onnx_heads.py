"""Heads in ONNX graphs, inside the backbone's and apart, beside what foveal itself answers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import foveal
from foveal.cli.main import main
from foveal.export.card import read_export
from foveal.export.onnx_engine import OnnxEngine
from foveal.features.extract import Model
from foveal.tasks.head import Head, Task, build_network, load_head, save_head
from foveal.tasks.kinds import head_card

Save = Callable[..., Path]
TOLERANCE = 5e-5  # of the largest: float32 in another order of summation, through up to 30 convolutions
# Odd and oblong grids: maps that are halved and doubled inside DPT come out larger than they were.
GRIDS = [(5, 5), (4, 7), (1, 3)]


def _save_head(folder: Path, model: Model, task: Task, kind: str, **settings: object) -> Path:
    """Write a head with random weights, batch statistics among them."""
    card = head_card(model, task, kind, classes=() if task == "depth" else ["sky", "road", "tree"])
    card = card.model_copy(update={"settings": card.settings | settings})
    network, generator = build_network(card).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, values in network.state_dict().items():
            if values.is_floating_point():
                drawn = torch.randn(values.shape, generator=generator)
                values.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else 0.2 * drawn)
    save_head(folder, Head(network, card))
    return folder


def _exported(model: Path, out: Path, *heads: Path, options: tuple[str, ...]) -> OnnxEngine:
    named = [text for head in heads for text in ("--head", str(head))]
    assert main(["export", "onnx", str(model), "--out", str(out), *named, *options]) == 0
    return OnnxEngine(out)


def _exact(model: Model, head: Head, images: torch.Tensor) -> torch.Tensor:
    predictor = model.with_head(head)
    if head.card.task == "classification":
        return predictor.of_arrays(list(images.numpy()))
    return predictor.scores(images)


def _images(grid: tuple[int, int], count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(grid[1])
    return torch.randn(count, 3, 7 * grid[0], 7 * grid[1], generator=generator)


# Tracing takes seconds a head; the linear ones of classes and depth are also in the test of heads apart.
CASES = [("classification", "attentive", {}), ("segmentation", "linear", {})]
LONG_CASES = [
    ("classification", "linear", {}),
    ("depth", "lin.1", {}),
    ("classification", "linear4", {}),
    ("classification", "mlp", {}),
    ("segmentation", "ms", {}),
    ("segmentation", "mlp", {}),
    ("segmentation", "dpt", {"fusion_width": 8}),
    ("depth", "lin.4", {}),
    ("depth", "dpt", {"fusion_width": 8}),
    ("depth", "dpt", {"fusion_width": 8, "form": "depth_anything", "patch_size": 7, "max_depth": None}),
    ("depth", "dpt", {"fusion_width": 8, "output": "sigmoid"}),
]


@pytest.mark.parametrize(
    ("task", "kind", "settings"), [*CASES, *(pytest.param(*case, marks=pytest.mark.full) for case in LONG_CASES)]
)
def test_head_says_what_it_says_on_the_model(
    save_tiny: Save, few_images: Path, tmp_path: Path, task: Task, kind: str, settings: dict
) -> None:
    folder = save_tiny(depth=4, num_registers=1)
    model = foveal.load(folder, engine="torch")
    head = _save_head(tmp_path / "answer", model, task, kind, **settings)
    engine = _exported(folder, tmp_path / "out", head, options=("--images", str(few_images)))
    (told,) = read_export(tmp_path / "out").heads
    assert (told.name, told.task, told.identity) == ("answer", task, load_head(head).identity)
    assert told.classes == ([] if task == "depth" else ["sky", "road", "tree"])
    for grid in GRIDS:
        images = _images(grid, count=1 + grid[0] % 3)
        found = torch.from_numpy(engine.outputs(images, ["answer"])["answer"])
        wanted = _exact(model, load_head(head), images)
        assert wanted.std() > 1e-3
        found = found.softmax(dim=1) if task == "classification" else found
        torch.testing.assert_close(found, wanted, atol=TOLERANCE * float(wanted.abs().max()), rtol=0)


def test_heads_apart_read_what_the_backbone_gives_out(save_tiny: Save, few_images: Path, tmp_path: Path) -> None:
    folder = save_tiny(depth=4)
    model = foveal.load(folder, engine="torch")
    labels = _save_head(tmp_path / "labels", model, "classification", "linear")
    depth = _save_head(tmp_path / "depth", model, "depth", "lin.1")
    engine = _exported(
        folder, tmp_path / "out", labels, depth, options=("--apart", "--opset", "20", "--images", str(few_images))
    )
    images = _images((3, 4))
    given = engine.outputs(images)
    assert "labels" not in given
    for name, head in (("labels", labels), ("depth", depth)):
        session = onnxruntime.InferenceSession(tmp_path / "out" / f"{name}.onnx")
        read = {one.name: given[one.name] for one in session.get_inputs()}
        (found,) = session.run([name], read)
        found = torch.from_numpy(found)
        wanted = _exact(model, load_head(head), images)
        found = found.softmax(dim=1) if name == "labels" else found
        torch.testing.assert_close(found, wanted, atol=TOLERANCE * float(wanted.abs().max()), rtol=0)
    assert "blocks.3.map" in given
    assert given["blocks.3.map"].shape == (2, 48, 3, 4)
    card = read_export(tmp_path / "out")
    assert list(card.sha256) == ["depth.onnx", "labels.onnx", "model.onnx"]
    assert card.verdict is not None
    assert sorted(card.verdict["heads"]) == ["depth", "labels"]


def test_heads_that_do_not_fit_are_refused(save_tiny: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, other = save_tiny(depth=4), save_tiny("other", depth=4, ffn="swiglu")
    head = str(_save_head(tmp_path / "head", foveal.load(other, engine="torch"), "segmentation", "linear"))

    def refused(*options: str) -> str:
        assert main(["export", "onnx", str(folder), "--out", str(tmp_path / "out"), *options]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "was fitted on other" in refused("--head", head)
    assert "the name 'cls' is taken" in refused("--head", f"cls={head}")
    assert "the name 'position' is taken" in refused("--head", f"position={head}")
    assert "'blocks.0' is no name" in refused("--head", f"blocks.0={head}")
    assert "'a/b' is no name" in refused("--head", f"a/b={head}")
    assert "the name 'head' is taken" in refused("--head", head, "--head", head)
    assert "is not a head folder" in refused("--head", str(tmp_path))
    assert "--apart is of heads" in refused("--apart")
    assert "a graph with heads needs at least 20" in refused("--head", head, "--opset", "19")
    own = load_head(_save_head(tmp_path / "own", foveal.load(folder, engine="torch"), "segmentation", "linear"))
    own.network.bn.weight.data[3] = np.nan
    save_head(tmp_path / "own", own)
    assert "holds NaN or infinite values in bn.weight" in refused("--head", str(tmp_path / "own"))
