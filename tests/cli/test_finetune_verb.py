import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.cli.main import main
from foveal.tasks.head import load_head


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_depth_is_fine_tuned_measured_and_predicted(
    model_folder: Path, rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "tuned", ("--data", rooms)
    tune = ("finetune", "depth", "lin.1", "--model", model_folder, *data, "--out", out, "--max-depth", 4)
    assert run(*tune, "--steps", 30, "--batch-size", 4, "--learning-rate", 1e-3) == 0
    assert f"step 30 of 30; model: {out / 'model'}  head: {out / 'head'}" in capsys.readouterr().out
    tuned = ("--model", out / "model", "--head", out / "head")
    assert run("head", "evaluate", *tuned, *data) == 0
    lines = dict(line.split("\t")[:2] for line in capsys.readouterr().out.splitlines())
    assert float(lines["lin.1 RMSE"]) < 0.5  # 0.75 is what their mean would give
    assert run("head", "predict", rooms / "images", *tuned, "--out", tmp_path / "found") == 0
    assert np.asarray(Image.open(tmp_path / "found" / "0.png")).dtype == np.uint16
    assert run("head", "evaluate", "--model", model_folder, "--head", out / "head", *data) == 2
    assert "was fitted on tiny, fine-tuned for depth" in capsys.readouterr().err


def test_depth_of_another_range_is_another_run(
    model_folder: Path, rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = ("finetune", "depth", "lin.1", "--model", model_folder, "--data", rooms, "--out", tmp_path / "tuned")
    assert run(*tune, "--steps", 1, "--batch-size", 2, "--max-depth", 4) == 0
    assert run(*tune, "--steps", 1, "--batch-size", 2, "--max-depth", 8) == 2
    assert "holds another run: answers.max_depth was 4.0, is 8.0" in capsys.readouterr().err


def test_labels_are_fine_tuned_measured_and_predicted(
    model_folder: Path, colours: Path, rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "tuned", ("--data", colours)
    tune = ("finetune", "classification", "linear", "--model", model_folder, *data, "--out", out)
    assert run(*tune, "--steps", 8, "--batch-size", 12, "--learning-rate", 1e-3, "--crop-size", 21) == 0
    tuned = ("--model", out / "model", "--head", out / "head")
    capsys.readouterr()
    assert run("head", "evaluate", *tuned, *data) == 0
    lines = dict(line.split("\t")[:2] for line in capsys.readouterr().out.splitlines())
    assert float(lines["linear top-1"]) > 80
    assert run("head", "predict", colours / "test", *tuned, "--out", tmp_path / "found") == 0
    assert "red" in (tmp_path / "found" / "predictions.csv").read_text()
    other = (*tuned, "--data", rooms, "--out", tmp_path / "other")
    assert run("finetune", "segmentation", *other) == 2
    assert "is a head for classification; foveal finetune classification takes it" in capsys.readouterr().err


def test_a_fitted_head_goes_on_with_its_backbone_and_with_no_other(
    model_folder: Path, rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, common = tmp_path / "head", ("--data", rooms, "--steps", 2, "--batch-size", 2)
    assert run("head", "fit", "segmentation", "linear", "--model", model_folder, *common, "--out", head) == 0
    tune = ("finetune", "segmentation", *common, "--head", head, "--out", tmp_path / "tuned")
    assert run(*tune, "--model", model_folder, "--lora", 2, "--precision", "bf16", "--drop-path", 0.2) == 0
    other = ("--model", tmp_path / "tuned" / "model", "--out", tmp_path / "other")
    assert run(*tune[:-2], *other) == 2
    assert "was fitted on tiny (" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    (rooms / "classes.txt").write_text("floor\nwall\nceiling\n")
    assert run(*tune[:-2], "--model", model_folder, "--out", tmp_path / "other") == 2
    assert "knows 2 classes, class 0, class 1, ...; " in capsys.readouterr().err


def test_file_of_a_public_head_is_where_it_begins(
    model_folder: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "nano_linear_head.pth", tmp_path / "tuned"
    torch.save({"weight": torch.randn(3, 2 * 48), "bias": torch.randn(3)}, file)
    tune = ("finetune", "classification", "--model", model_folder, "--head", file, "--out", out, "--steps", 1)
    assert run(*tune, "--batch-size", 2, "--data", colours, "--learning-rate", 1e-9) == 0
    head = load_head(out / "head")
    assert head.card.classes == ["blue", "green", "red"]
    torch.testing.assert_close(head.network.state_dict(), torch.load(file), atol=1e-8, rtol=0)
    capsys.readouterr()
    for part in ("train", "test"):
        shutil.rmtree(colours / part / "red")
    assert run(*tune[:-4], "--out", tmp_path / "other", "--data", colours) == 2
    assert "knows 3 classes, not named, ...; " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("depth",), "which depth head? choose lin.1, lin.4, dpt; or give one that is fitted, as --head"),
        (("depth", "linear"), "no depth head is called 'linear'; choose lin.1, lin.4, dpt"),
        (("depth", "lin.1", "--ignore", 3), "--ignore has no effect on depth"),
        (("segmentation", "linear", "--max-depth", 3), "--max-depth has no effect on segmentation"),
        (("depth", "lin.1", "--head", "h"), "the kind is that of --head h; leave it out"),
        (("depth", "--head", "nowhere"), "nowhere is not a head folder"),
        (("classification", "linear", "--size", 64), "--size has no effect on classification"),
        (("depth", "lin.1", "--label-smoothing", 0.1), "--label-smoothing has no effect on depth"),
        (("depth", "lin.1", "--layer-decay", 2), "layer_decay=2.0; give a factor above 0, at most 1"),
        (("depth", "lin.1", "--freeze-blocks", 3), "freeze_blocks=3 of a backbone with 1 blocks"),
        (("depth", "lin.1", "--out", __file__), "is a file; choose another place"),
        (("depth", "lin.1", "--model", "timm:vit"), "timm:vit is a network of another library"),
    ],
)
def test_wrong_options_end_with_code_2_and_leave_nothing(
    model_folder: Path,
    rooms: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    said: str,
) -> None:
    options = {"--model": model_folder, "--data": rooms, "--out": tmp_path / "tuned"}
    missing = [part for name, value in options.items() if name not in arguments for part in (name, value)]
    assert run("finetune", *arguments, *missing) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "tuned").exists()


def test_terminated_command_saves_and_goes_on(
    model_folder: Path, rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"

    def terminate() -> None:
        metrics, deadline = out / "metrics.jsonl", time.monotonic() + 60
        while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    waiting = threading.Thread(target=terminate)
    waiting.start()
    tune = ("finetune", "depth", "lin.1", "--model", model_folder, "--data", rooms, "--out", out, "--batch-size", 1)
    assert run(*tune, "--steps", 100_000) == 0
    waiting.join()
    said = capsys.readouterr().out
    assert said.startswith("stopped and saved at step ")
    assert said.endswith("of 100000; run the same command again to continue\n")
    assert run("checkpoint", "export", out, tmp_path / "so_far") == 0
    assert f"after {said.split()[5]} steps" in capsys.readouterr().out
