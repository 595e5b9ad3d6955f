import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.cli.main import main
from foveal.evaluate.report import read_rows
from foveal.tasks.head import load_head


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_mask_head_is_fitted_measured_and_used(
    model_folder: Path, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, model = tmp_path / "head", ("--model", model_folder)
    fit = (
        "head",
        "fit",
        "segmentation",
        "linear",
        *model,
        "--data",
        street,
        "--out",
        head,
        "--steps",
        30,
        "--learning-rate",
        0.03,
    )
    assert run(*fit, "--batch-size", 4) == 0
    assert not list(tmp_path.glob(".head*"))
    capsys.readouterr()
    assert run("head", "evaluate", *model, "--head", head, "--data", street, "--out", tmp_path / "results") == 0
    lines = dict(line.split("\t")[:2] for line in capsys.readouterr().out.splitlines())
    assert float(lines["linear mIoU"]) > 80
    # A name of its own: what is published was fitted and tested in one way, and heads are told apart.
    out = ("--data", street, "--out", tmp_path / "results")
    assert run("head", "evaluate", *model, "--head", head, *out, "--flip", "--size", 28) == 0
    names = {row.protocol for row in read_rows(tmp_path / "results")}
    name = f"segment, head {load_head(head).identity[:8]}"
    assert names == {name, f"{name}, size 28, flip"}
    assert run("head", "predict", street / "test", *model, "--head", head, "--out", tmp_path / "masks") == 0
    mask = Image.open(tmp_path / "masks" / "0.png")
    assert (mask.mode, mask.size) == ("P", (35, 28))
    assert (np.asarray(mask) == np.asarray(Image.open(street / "testannot" / "0.png"))).mean() > 0.9


def test_depth_is_written_in_millimetres_with_a_picture(model_folder: Path, street: Path, tmp_path: Path) -> None:
    head, model = tmp_path / "head", ("--model", model_folder)
    rooms = street.with_name("rooms")
    fit = (
        "head",
        "fit",
        "depth",
        "lin.1",
        *model,
        "--data",
        rooms,
        "--out",
        head,
        "--steps",
        60,
        "--learning-rate",
        0.03,
    )
    assert run(*fit, "--max-depth", 4) == 0
    assert run("head", "evaluate", *model, "--head", head, "--data", rooms) == 0
    assert run("head", "predict", rooms / "test" / "0.png", *model, "--head", head, "--out", tmp_path / "out") == 0
    depth = np.asarray(Image.open(tmp_path / "out" / "0.png"))
    assert (depth.dtype, depth.shape) == (np.uint16, (28, 35))
    assert 1000 < depth[:, -7:].mean() < depth[:, :7].mean() < 4000
    assert np.asarray(Image.open(tmp_path / "out" / "0.colour.png")).shape == (28, 35, 3)


def public_file(model_folder: Path, path: Path, *, classes: int) -> Path:
    """Write a linear head for masks as the official ones are laid out; it answers the last class everywhere."""
    width = json.loads((model_folder / "model.json").read_text())["backbone"]["width"]
    tensors = {name: torch.zeros(width) for name in ("bn.weight", "bn.bias", "bn.running_mean")}
    tensors["bn.running_var"] = torch.ones(width)
    tensors["bn.num_batches_tracked"] = torch.tensor(1)
    tensors["conv_seg.weight"] = torch.zeros(classes, width, 1, 1)
    tensors["conv_seg.bias"] = torch.arange(classes).float()
    torch.save({"state_dict": {f"decode_head.{name}": value for name, value in tensors.items()}}, path)
    return path


def test_file_of_a_public_head_is_used_and_measured(
    model_folder: Path, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = ("--model", model_folder, "--head", public_file(model_folder, tmp_path / "head.pth", classes=2))
    windows = ("--crop-size", 14, "--stride", 7, "--probabilities")
    assert run("head", "predict", street / "test", *head, "--out", tmp_path / "out", *windows) == 0
    assert (np.asarray(Image.open(tmp_path / "out" / "1.png")) == 1).all()
    probabilities = np.load(tmp_path / "out" / "1.npy")
    assert (probabilities.shape, probabilities.dtype) == ((2, 28, 35), np.float16)
    assert probabilities[1].mean() == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-3)
    assert run("head", "evaluate", *head, "--data", street) == 0
    assert "mIoU" in capsys.readouterr().out
    more = public_file(model_folder, tmp_path / "more.pth", classes=3)
    assert run("head", "evaluate", "--model", model_folder, "--head", more, "--data", street) == 2
    assert "knows 3 classes, not named" in capsys.readouterr().err


def test_answers_never_replace_pictures_or_each_other(
    model_folder: Path, street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = ("--model", model_folder, "--head", public_file(model_folder, tmp_path / "head.pth", classes=2))
    for source in (street / "test", street / "test" / "0.png", street / "test" / "*.png"):
        assert run("head", "predict", source, *head, "--out", street / "test") == 2
        assert "is where the pictures are" in capsys.readouterr().err
    assert run("head", "predict", street / "test", street / "train", *head, "--out", tmp_path / "out") == 2
    assert "2 names occur more than once, first 0" in capsys.readouterr().err
    assert run("head", "predict", street / "test", *head, "--out", tmp_path / "out", "--unit", 0) == 2
    assert "unit=0; give the metres of the value 1" in capsys.readouterr().err
    assert run("head", "predict", street / "test", *head, "--out", tmp_path / "out", "--stride", 7) == 2
    assert "stride=7 without crop_size" in capsys.readouterr().err


def test_interrupted_fit_says_that_it_can_go_on(
    model_folder: Path,
    street: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit = (
        "head",
        "fit",
        "segmentation",
        "linear",
        "--model",
        model_folder,
        "--data",
        street,
        "--out",
        tmp_path / "head",
    )

    @contextmanager
    def interrupting(label: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: signal.raise_signal(signal.SIGINT) if done == 3 else None

    with monkeypatch.context() as patched:
        patched.setattr("foveal.cli.head.progress_of", interrupting)
        assert run(*fit, "--steps", 6) == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    assert (tmp_path / ".head.fit.safetensors").is_file()
    assert run(*fit, "--steps", 6) == 0
    assert [path.name for path in tmp_path.glob("*head*")] == ["head"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fit", "segmentation", "linear", "--unit", 1), "--unit has no effect on masks"),
        (("fit", "depth", "lin.1", "--ignore", 3), "--ignore has no effect on depth"),
        (("fit", "segmentation", "lin.1"), "no segmentation head is called 'lin.1'; choose linear, ms, mlp, dpt"),
        (("fit", "segmentation", "linear", "--no-distort"), "--distort has no effect on whole pictures"),
        (
            ("fit", "depth", "lin.1", "--crop-size", "4y"),
            "--crop-size 4y; write pixels, such as 224, or height x width",
        ),
        (("fit", "depth", "lin.4"), "a head of four blocks on a network of 1"),
        (("fit", "segmentation", "linear", "--out", Path(__file__) / "head"), "cannot be made (File exists)"),
        (("evaluate", "--head", "nowhere"), "nowhere is not a head folder"),
    ],
)
def test_wrong_options_end_with_code_2(
    model_folder: Path,
    street: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    said: str,
) -> None:
    data = street.with_name("rooms") if "lin.4" in arguments else street
    out = ("--out", tmp_path / "head") if arguments[0] == "fit" and "--out" not in arguments else ()
    assert run("head", *arguments, "--model", model_folder, "--data", data, *out) == 2
    assert said in capsys.readouterr().err
