"""`foveal export verify`: the verdict on an export that is there; plans on a stand-in for TensorRT."""

import ctypes
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import foveal
from foveal.cli.main import main
from foveal.export.card import ExportError, read_export
from foveal.export.onnx_engine import OnnxEngine
from foveal.export.plan_engine import PlanEngine
from foveal.tasks.head import Head, build_network, save_head
from foveal.tasks.kinds import head_card

Save = Callable[..., Path]


def _run(*options: object) -> int:
    return main(["export", *map(str, options)])


@pytest.mark.parametrize("kind", ["onnx", "openvino", "triton", "huggingface"])
def test_an_export_is_compared_again_and_stays_as_it_is(
    save_tiny: Save, few_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    for package in {"openvino": ["openvino"], "huggingface": ["transformers"]}.get(kind, []):
        pytest.importorskip(package)
    model, out = save_tiny(card={"crop_size": 21, "resize_size": 24}), tmp_path / "out"
    assert _run(kind, model, "--out", out, "--images", few_images) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert _run("verify", out, model, "--images", few_images) == 0
    told = capsys.readouterr().out
    assert "cosine of class tokens, min" in told
    assert f"{out}: model as {kind}, fp32" in told
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_another_model_a_damaged_graph_and_no_export_are_refused(
    save_tiny: Save, few_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, other, out = save_tiny(), save_tiny("other", num_registers=1), tmp_path / "out"
    assert _run("onnx", model, "--out", out, "--images", few_images) == 0
    for arguments, words in (
        ((out, other), "was made from model ("),
        ((model, model), "is no export"),
        ((out, model, "--limit", "2"), "limit 2.0 is no cosine"),
        ((out, tmp_path / "nothing"), "nothing"),
    ):
        assert _run("verify", *arguments, "--images", few_images) == 2
        assert words in capsys.readouterr().err
    # Weights that were changed, under a card that was changed with them.
    graph = onnx.load(out / "model.onnx")
    (weight,) = [one for one in graph.graph.initializer if one.name == "blocks.1.mlp.fc2.weight"]
    weight.CopyFrom(numpy_helper.from_array(3 * numpy_helper.to_array(weight), weight.name))
    onnx.save(graph, out / "model.onnx")
    assert _run("verify", out, model, "--images", few_images) == 2
    assert "is missing or damaged" in capsys.readouterr().err
    card = read_export(out, verify=False).model_copy(update={"sha256": {}})
    (out / "export.json").write_text(card.model_dump_json())
    assert _run("verify", out, model, "--images", few_images) == 2
    told = capsys.readouterr()
    assert "cosine of class tokens, min" in told.out
    assert f"{out} does not agree with {model}: cosine min" in told.err.replace("\n", "")
    assert "the error begins in blocks.1" in told.err


def test_heads_are_compared_where_they_are_given(
    save_tiny: Save, few_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = save_tiny(), tmp_path / "out"
    for name in ("inside", "other"):
        card = head_card(foveal.load(model), "classification", "linear", classes=["sky", "road"])
        save_head(tmp_path / name, Head(build_network(card).eval(), card))
    assert _run("onnx", model, "--out", out, "--head", tmp_path / "inside", "--images", few_images) == 0
    capsys.readouterr()
    assert _run("verify", out, model, "--images", few_images) == 0
    assert "the head inside was not compared; give it as --head" in capsys.readouterr().out
    assert _run("verify", out, model, "--head", tmp_path / "inside", "--images", few_images) == 0
    told = capsys.readouterr().out
    assert "inside: error of outputs, mean" in told
    assert "not compared" not in told
    for given in (tmp_path / "other", f"inside={tmp_path / 'other'}"):
        assert _run("verify", out, model, "--head", given, "--images", few_images) == 2
        assert "holds no such head" in capsys.readouterr().err


class _Runtime:
    """TensorRT's side of a plan: memory at addresses, in and out; behind it ONNX Runtime with the graph of the plan."""

    def __init__(self, graph: Path, *, least: tuple[int, ...], most: tuple[int, ...], scale: float = 1.0) -> None:
        self.engine, self.bounds, self.scale = OnnxEngine(graph), (least, least, most), scale
        self.names = ["images", *self.engine.output_names]
        self.num_io_tensors = len(self.names)
        self.addresses: dict[str, int] = {}
        self.shape: Sequence[int] = ()
        self.ran: list[tuple[int, ...]] = []

    def module(self) -> ModuleType:
        found = ModuleType("tensorrt")
        found.__version__ = "10.0-fake"  # type: ignore[attr-defined]
        logger = type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None})
        modes = SimpleNamespace(INPUT=0, OUTPUT=1)
        vars(found).update(Logger=logger, TensorIOMode=modes, Runtime=lambda logger: self)
        return found

    def deserialize_cuda_engine(self, plan: bytes) -> Any:
        return self if plan == b"plan" else None

    def create_execution_context(self) -> Any:
        return self

    def get_tensor_name(self, number: int) -> str:
        return self.names[number]

    def get_tensor_mode(self, name: str) -> int:
        return int(name != "images")

    def get_tensor_profile_shape(self, name: str, number: int) -> Any:
        return self.bounds

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.engine.outputs(torch.zeros(*self.shape), [name])[name].shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        images = _at(self.addresses["images"], self.shape)
        self.ran.append(images.shape)
        for name, values in self.engine.outputs(torch.from_numpy(images.copy())).items():
            _at(self.addresses[name], values.shape)[:] = self.scale * values
        return True


def _at(address: int, shape: Sequence[int]) -> np.ndarray:
    values = (ctypes.c_float * int(np.prod(shape))).from_address(address)
    return np.frombuffer(values, np.float32).reshape(shape)


@pytest.fixture
def plan(save_tiny: Save, few_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An export for TensorRT, whose plan was built afterwards, and where it would run."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    options = ("--batch", "1:2:2", "--images", few_images)
    assert _run("tensorrt", save_tiny(num_registers=1), "--out", tmp_path / "out", *options) == 0
    monkeypatch.setattr("foveal.export.plan_engine.DEVICE", "cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_stream", lambda: SimpleNamespace(cuda_stream=0))
    return tmp_path / "out"


def test_a_plan_is_run_at_the_shapes_that_it_takes(
    plan: Path, few_images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = plan.parent / "model"
    assert _run("verify", plan, model, "--images", few_images) == 2
    assert "holds no model.plan yet; run" in capsys.readouterr().err
    (plan / "model.plan").write_bytes(b"plan")
    assert _run("verify", plan, model, "--images", few_images) == 2
    assert "is run by TensorRT, which cannot be imported" in capsys.readouterr().err
    runtime = _Runtime(plan / "model.onnx", least=(1, 3, 35, 35), most=(2, 3, 35, 35))
    monkeypatch.setitem(sys.modules, "tensorrt", runtime.module())
    assert _run("verify", plan, model, "--images", few_images) == 0
    assert "tensorrt bf16" in capsys.readouterr().out
    assert set(runtime.ran) == {(1, 3, 35, 35), (2, 3, 35, 35)}
    engine = PlanEngine(plan / "model.plan", read_export(plan))
    images = torch.randn(2, 3, 35, 35, generator=torch.Generator().manual_seed(0))
    for found, exact in zip(engine.encode(images), OnnxEngine(plan).encode(images), strict=True):
        torch.testing.assert_close(found, exact)
    with pytest.raises(ExportError, match=r"takes images from \(1, 3, 35, 35\) to \(2, 3, 35, 35\), and these are"):
        engine.encode(images[:, :, :28])
    runtime.scale = float("inf")  # as fp16 that overflows
    assert _run("verify", plan, model, "--images", few_images) == 2
    assert "does not agree with" in capsys.readouterr().err.replace("\n", " ")


def test_a_plan_of_another_gpu_is_told(
    plan: Path, few_images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (plan / "model.plan").write_bytes(b"of another")
    runtime = _Runtime(plan / "model.onnx", least=(1, 3, 35, 35), most=(2, 3, 35, 35))
    monkeypatch.setitem(sys.modules, "tensorrt", runtime.module())
    assert _run("verify", plan, plan.parent / "model", "--images", few_images) == 2
    assert "is of another GPU or another TensorRT than 10.0-fake" in capsys.readouterr().err
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert _run("verify", plan, plan.parent / "model", "--images", few_images) == 2
    assert "runs on a GPU, and PyTorch finds none" in capsys.readouterr().err
