"""`foveal export tensorrt`: the command where TensorRT is not, and what TensorRT is asked where it is."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from foveal.cli.main import main
from foveal.errors import FovealError
from foveal.export.card import read_export
from foveal.export.tensorrt import Range, parse_range

Save = Callable[..., Path]


def _export(*options: object) -> int:
    return main(["export", "tensorrt", *map(str, options)])


@pytest.fixture
def without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)


@pytest.mark.usefixtures("without_tensorrt")
def test_without_tensorrt_the_command_is_written(
    save_tiny: Save, few_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--batch", "1:4:16", "--width", "35:70:140", "--precision", "bf16", "--images", few_images)
    assert _export(save_tiny(), "--out", out, *options) == 0
    assert "TensorRT is not installed here, so no plan was built" in capsys.readouterr().out
    card = read_export(out)
    assert (card.built, card.precision, card.opset) == (False, "bf16", 20)
    assert sorted(card.sha256) == ["build.sh", "model.onnx"]
    # A trtexec that says what it was asked, and where.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "trtexec").write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    (tmp_path / "bin" / "trtexec").chmod(0o755)
    done = subprocess.run(
        [out / "build.sh"],
        env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        str(out),
        "--onnx=model.onnx",
        "--saveEngine=model.plan",
        "--minShapes=images:1x3x35x35",
        "--optShapes=images:4x3x35x70",
        "--maxShapes=images:16x3x35x140",
        "--bf16",
    ]


class _FakeTensorRT(ModuleType):
    """Writes down what the builder is asked; its plan is what it was asked."""

    def __init__(self, *, reads: bool = True) -> None:
        super().__init__("tensorrt")
        self.__version__ = "10.0-fake"
        self.asked: list[Any] = []
        self.BuilderFlag = SimpleNamespace(FP16="FP16", BF16="BF16")
        self.reads = reads

    class Logger:
        WARNING = 1

        def __init__(self, level: int) -> None:
            self.level = level

    def Builder(self, logger: Any) -> Any:
        profile = SimpleNamespace(set_shape=lambda *shape: self.asked.append(shape))
        settings = SimpleNamespace(set_flag=self.asked.append, add_optimization_profile=lambda given: None)
        return SimpleNamespace(
            logger=logger,
            create_network=lambda flags: "network",
            create_builder_config=lambda: settings,
            create_optimization_profile=lambda: profile,
            build_serialized_network=lambda network, given: b"plan",
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        return SimpleNamespace(
            parse_from_file=lambda path: self.reads and Path(path).is_file(),
            num_errors=1,
            get_error=lambda number: "unknown operator",
        )


def test_with_tensorrt_the_plan_is_built(
    save_tiny: Save, few_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = _FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    assert _export(save_tiny(), "--out", tmp_path / "out", "--images", few_images) == 0
    assert (tmp_path / "out" / "model.plan").read_bytes() == b"plan"
    assert fake.asked == ["BF16", ("images", (1, 3, 35, 35), (8, 3, 35, 35), (64, 3, 35, 35))]
    card = read_export(tmp_path / "out")
    assert (card.built, card.versions["tensorrt"]) == (True, "10.0-fake")
    assert card.notes[0].startswith(
        "the verdict is that of the graph; the plan was built here and not run: foveal export"
    )


def test_a_graph_that_tensorrt_cannot_read_leaves_nothing(
    save_tiny: Save,
    few_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", _FakeTensorRT(reads=False))
    assert _export(save_tiny(), "--out", tmp_path / "out", "--images", few_images) == 2
    assert "cannot read the graph: unknown operator" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tensorrt_without_the_precision_is_told(
    save_tiny: Save,
    few_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake = _FakeTensorRT()
    fake.BuilderFlag = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    assert _export(save_tiny(), "--out", tmp_path / "out", "--images", few_images) == 2
    assert "takes no precision but that of the graph; use --precision fp32" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_tensorrt")
def test_sizes_that_are_no_patches_are_refused(
    save_tiny: Save, few_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _export(save_tiny(), "--out", tmp_path / "out", "--height", "35:36:70", "--images", few_images) == 2
    assert "--height=36 is not a multiple of patch_size=7; use 35 or 42" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ranges_are_one_number_or_three_that_ascend() -> None:
    assert parse_range("1:8:64", option="--batch") == Range(1, 8, 64)
    assert parse_range("224", option="--height") == Range(224, 224, 224)
    for text, message in (
        ("8:1:64", "must ascend"),
        ("0", "from at least 1"),
        ("1:2", "write one number"),
        ("x", "x;"),
    ):
        with pytest.raises(FovealError, match=message):
            parse_range(text, option="--batch")
