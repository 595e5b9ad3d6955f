"""`foveal pretrain` on good and bad input: exit codes, messages, and no traceback."""

import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import foveal
from foveal.cli.main import main
from foveal.cli.training import training_progress
from foveal.pretrain.loop import Progress
from foveal.pretrain.run import read_metrics

RECIPE: dict[str, Any] = {
    "total_steps": 3,
    "batch_size": 4,
    "micro_batch_size": 2,
    "backbone": {"variant": "vit_nano", "depth": 1, "patch_size": 8, "image_size": 32, "layerscale_init": 0.1},
    "heads": {"dino": {"num_prototypes": 16, "bottleneck": 8, "hidden": 12}},
    "views": {"global_size": 32, "local_size": 16, "num_local": 2},
    "teacher": {"temperature_warmup_steps": 2},
    "optimizer": {"warmup_steps": 1, "freeze_last_layer_steps": 0},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


class Called:
    """Exit code and output of one call."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> Called:
        code = main(["pretrain", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Called(code, captured.out, captured.err)

    return run


def test_trains_and_names_the_model(call: Any, recipe: Path, photos: Path, tmp_path: Path) -> None:
    done = call("--recipe", recipe, f"images={photos}", f"out={tmp_path / 'out'}")
    assert done.code == 0
    assert done.out == f"step 3 of 3; model: {tmp_path / 'out' / 'model'}\n"
    assert "step 3/3  loss " in done.err
    assert " waiting for data)  left 0:00:00" in done.err or " images/s  left 0:00:00" in done.err
    assert foveal.load(tmp_path / "out" / "model").extract(next(photos.rglob("*.png"))).cls.shape == (1, 48)


def test_steps_stops_early_and_the_same_command_continues(
    call: Any, recipe: Path, photos: Path, tmp_path: Path
) -> None:
    command = ("--recipe", recipe, f"images={photos}", f"out={tmp_path / 'out'}")
    assert call(*command, "--steps", 2).out.startswith("step 2 of 3; ")
    assert call(*command).out.startswith("step 3 of 3; ")
    assert [line["step"] for line in read_metrics(tmp_path / "out")] == [0, 1, 2]


@pytest.mark.parametrize(("name", "crop"), [("vitl16_in1k_short", 64), ("vitl14_in22k", 56), ("vitg14_lvd142m", 56)])
def test_published_recipes_build_and_run_a_step(call: Any, photos: Path, tmp_path: Path, name: str, crop: int) -> None:
    """Width, heads' depth, ffn, centering, schedules as published; blocks, prototypes, crops and batch cut."""
    overrides = [
        "batch_size=2",
        "micro_batch_size=2",
        "views.enlarge=true",
        "backbone.depth=1",
        "views.num_local=1",
        "num_workers=0",
    ]
    overrides += [f"views.global_size={crop}", f"views.local_size={crop // 2}", f"backbone.image_size={crop}"]
    overrides += [
        "views.enlarge=true",
        "objective.koleo_group=2",
        "precision=fp32",
        "heads.dino.num_prototypes=64",
        "heads.dino.hidden=32",
    ]
    if name != "vitl16_in1k_short":
        overrides += ["heads.ibot.num_prototypes=48", "heads.ibot.hidden=32"]
    done = call("--recipe", name, "--steps", 1, f"images={photos}", f"out={tmp_path / 'out'}", *overrides)
    assert done.code == 0, done.err
    assert done.out.startswith("step 1 of ")
    line = json.loads((tmp_path / "out" / "metrics.jsonl").read_text())
    assert np.isfinite(line["loss"])
    assert "skipped" not in line
    width = 1536 if "vitg" in name else 1024
    assert foveal.load(tmp_path / "out" / "model").card.backbone.width == width


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_sise=8", "unknown recipe key 'batch_sise'; did you mean 'batch_size'?"),
        ("backbone.image_size=225", "image_size=225 is not a multiple of patch_size=8; use 224 or 232"),
        ("views.global_size=30", "views.global_size=30 is not a multiple of patch_size=8; use 24 or 32"),
        ("images=no/where", "no/where does not exist"),
        ("precision=int4", "precision: Input should be 'fp32' or 'bf16'"),
        ("device=tpu", "device=tpu cannot be used"),
    ],
)
def test_bad_settings(call: Any, recipe: Path, photos: Path, tmp_path: Path, override: str, message: str) -> None:
    done = call("--recipe", recipe, f"images={photos}", f"out={tmp_path / 'out'}", override)
    assert done.code == 2
    assert message in done.err
    assert done.err.startswith("error: ")
    assert done.out == ""


def test_missing_or_unknown_recipe(call: Any) -> None:
    done = call("images=x", "out=y")
    assert done.code == 2
    assert done.err.startswith("error: --recipe is missing; built in: ")
    done = call("--recipe", "vitl14_in2k", "images=x", "out=y")
    assert done.code == 2
    assert "did you mean 'vitl14_in22k'?" in done.err
    done = call("--recipe", "demo")
    assert done.code == 2
    assert "needs images and out; add images=... out=..." in done.err


def test_empty_folder(call: Any, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = call("--recipe", recipe, f"images={tmp_path / 'empty'}", f"out={tmp_path / 'out'}")
    assert done.code == 2
    assert "holds no image" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_only_unreadable_files(call: Any, recipe: Path, photos: Path, tmp_path: Path, num_workers: int) -> None:
    for path in photos.rglob("*.png"):
        path.write_text("not an image")
    done = call("--recipe", recipe, f"images={photos}", f"out={tmp_path / 'out'}", f"num_workers={num_workers}")
    assert done.code == 2
    assert "2 of 24 images are bad (2 unknown_format)" in done.err


def _huge_png(path: Path) -> None:
    """A valid header of 20,000 x 10,000 pixels and next to nothing behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def _truncated_jpeg(path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:1500])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_text("a poem"), "unknown_format"),
        (_truncated_jpeg, "truncated"),
        (_huge_png, "too_many_pixels"),
        (lambda path: path.write_bytes(b""), "empty"),
    ],
    ids=["text", "truncated", "huge", "empty"],
)
def test_a_bad_image_among_good_ones_is_skipped_and_written_down(
    call: Any, recipe: Path, photos: Path, tmp_path: Path, make: Any, reason: str
) -> None:
    make(photos / "bad.jpg")
    # 7 steps of 4 show all 25 images
    done = call("--recipe", recipe, f"images={photos}", f"out={tmp_path / 'out'}", "total_steps=7")
    assert done.code == 0, done.err
    entries = [json.loads(line) for line in (tmp_path / "out" / "bad_images.jsonl").read_text().splitlines()]
    assert [(entry["uri"], entry["reason"]) for entry in entries] == [("bad.jpg", reason)]


def test_out_of_another_run(call: Any, recipe: Path, photos: Path, tmp_path: Path) -> None:
    command = ("--recipe", recipe, f"images={photos}", f"out={tmp_path / 'out'}")
    assert call(*command, "--steps", 1).code == 0
    done = call(*command, "seed=5")
    assert done.code == 2
    assert "holds another run: seed was 0, is 5." in done.err
    Image.new("RGB", (9, 9)).save(photos / "new.png")
    done = call(*command)
    assert done.code == 2
    assert "the images are not the same" in done.err
    done = call("--recipe", recipe, f"images={photos}", f"out={photos}")
    assert done.code == 2
    assert "is not empty and not a run" in done.err


def _progress(step: int) -> Progress:
    last = {"knn": 40.0, "data_wait": 0.256} if step == 10 else {"data_wait": 0.09}
    return Progress(step, 10, 12.5, {"loss": 1.25} | last)


def test_without_a_terminal_a_line_when_it_is_time(capsys: pytest.CaptureFixture[str]) -> None:
    with training_progress(every_s=0) as listener:
        listener(_progress(1))
    with training_progress(every_s=3600) as listener:
        for step in (2, 3, 10):
            listener(_progress(step))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 1/10  loss 1.250  12.5 images/s  left unknown"
    assert lines[1:] == ["step 10/10  loss 1.250  12.5 images/s (26% waiting for data)  knn 40.0 %  left 0:00:00"]


def test_on_a_terminal_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with training_progress() as listener:
        listener(_progress(10))
    err = capsys.readouterr().err
    assert "10/10" in err
    assert "loss 1.250  12.5 images/s (26% waiting for data)  knn 40.0 %" in err
