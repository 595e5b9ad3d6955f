from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.cli.main import main


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """street/{train,test} with masks beside them: left dark is 0, right bright is 1; and depth of the same pictures."""
    for part, count in (("train", 4), ("test", 2)):
        for number in range(count):
            bright = (np.arange(35) >= 12 + 3 * number)[None].repeat(28, 0)
            files = {
                f"street/{part}": np.where(bright, 220, 30).astype(np.uint8),
                f"street/{part}annot": bright.astype(np.uint8),
                f"rooms/{part}": np.where(bright, 220, 30).astype(np.uint8),
                f"rooms/{part}depth": np.where(bright, 1500, 3000).astype(np.uint16),
            }
            for folder, pixels in files.items():
                path = tmp_path / folder / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return tmp_path / "street"


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
    assert (tmp_path / "results" / "results.jsonl").is_file()
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
    out = ("--out", tmp_path / "head") if arguments[0] == "fit" else ()
    assert run("head", *arguments, "--model", model_folder, "--data", data, *out) == 2
    assert said in capsys.readouterr().err
