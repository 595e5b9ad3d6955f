"""`foveal extract` as a user runs it: options, errors, kills."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import foveal
from foveal.cli.main import main
from foveal.features.store import FeatureStore

NUM_SHARDS = 30  # of 20 rows


@pytest.fixture
def command(model_folder: Path, photos: Path, tmp_path: Path) -> list[str]:
    return ["extract", str(photos), "--model", str(model_folder), "--out", str(tmp_path / "store")]


def test_extract_says_what_comes_what_it_cost_and_what_it_lost(
    command: list[str], model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cat" / "1.png").write_bytes(b"damaged")
    options = ["--tokens", "cls, patches", "--dtype", "int8", "--shard-size", "7", "--batch-size", "3"]
    assert main([*command, *options]) == 0
    printed = capsys.readouterr()
    assert "cls 48, patches 4x4x48 in int8: 884 bytes an image, 21.2 kB for 24 images" in printed.err
    assert "GB free" in printed.err
    assert "23 images, skipped: 1 unknown_format (named in " in printed.out
    assert "patches: 832 bytes an image, cosine to float32 0.999" in printed.out
    store = FeatureStore.open(tmp_path / "store")
    assert store.read("patches").shape == (23, 4, 4, 48)
    assert store.stamp["model"]["sha256"] == foveal.load(model_folder).identity
    assert main([*command, *options]) == 0
    assert "continuing: 4 of 4 shards are finished" in capsys.readouterr().err
    without_model = [*command[:2], *command[4:]]
    assert main([*without_model, "--verify"]) == 0
    assert "24 of 24 images extracted; these and their features are unchanged" in capsys.readouterr().out


def test_model_is_asked_for_where_it_is_needed(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command[:2], *command[4:]]) == 2
    assert "--model is missing; give a model folder, a checkpoint" in capsys.readouterr().err
    assert not Path(command[-1]).exists()


def test_parts_of_a_job_array_make_the_same_store(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--shard-size", "7", "--tokens", "cls,mean", "--layers", "0"]
    assert main([*command, *options, "--shard", "1/2"]) == 0
    assert "part 1/2 of" in capsys.readouterr().out
    assert main([*command, *options, "--shard", "0/2"]) == 0
    assert "wrote" in capsys.readouterr().out
    assert main([*command[:-1], str(tmp_path / "whole"), *options]) == 0
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_size_may_be_height_and_width(command: list[str], tmp_path: Path) -> None:
    assert main([*command, "--tokens", "patches", "--size", "14x35"]) == 0
    assert FeatureStore.open(tmp_path / "store").shape("patches")[:2] == (2, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "a"], "write block numbers separated by commas"),
        (["--layers", "5"], "choose among the blocks 0 to 0"),
        (["--tokens", "cls,pixels"], "choose one or more of cls"),
        (["--dtype", "float8"], "'float8' is not one of 'float16', 'int8', 'float32'; did you mean 'float32'?"),
        (["--pca", "3"], "no effect without patches"),
        (["--fit", "squash"], "'squash' is not one of 'crop', 'resize', 'pad'"),
        (["--size", "30"], "size 30: 30 is not a multiple of the patch size 7; use 28 or 35"),
        (["--size", "1000000", "--fit", "resize"], "choose at most 1561 pixels a side"),
        (["--size", "14x21", "--fit", "pad"], "fit pad keeps the proportions; give the short side alone"),
        (["--tokens", "registers"], "no registers"),
        (["--tokens", "patches", "--pca", "48"], "choose 1 to 47 components"),
        (["--engine", "opnvino"], "'opnvino' is not one of"),
        (["--fast", "--engine", "torch"], "leaves no choice"),
        (["--num-heads", "16"], "num_heads=16, and the card of"),
        (["--size", "14x"], "--size 14x; write pixels, such as 224, or height x width, such as 224x448"),
        (["--size", "0x14"], "--size 0x14; write pixels"),
        (["--shard", "2/2"], "write i/n"),
        (["--on", "moon"], "the one choice is ray"),
        (["--ray-address", "auto"], "no effect without --on ray"),
        (["--on", "ray", "--shard", "0/2"], "--shard has no effect beside --on ray"),
        (["--verify"], "--model has no effect beside --verify, which extracts nothing"),
        (["--verify", "--dtype", "int8"], "--model, --dtype has no effect beside --verify"),
    ],
)
def test_wrong_options_are_errors_and_leave_nothing(
    command: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err
    assert not Path(command[-1]).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "cls,pixels"], "choose one or more of cls"),
        (["--layers", "1"], "choose among the blocks 0 to 0"),
        (["--size", "30"], "30 is not a multiple"),
        (["--pca", "3"], "no effect without patches"),
        (["--shard", "2/2"], "write i/n"),
        (["--fast", "--precision", "bf16"], "precision 'bf16' leaves no choice"),
    ],
)
def test_options_are_checked_before_the_weights_are_read(
    command: list[str], model_folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (model_folder / "model.safetensors").write_bytes(b"damaged")
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is here")
def test_missing_ray_is_said_before_anything_is_made(
    command: list[str], model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model_folder / "model.safetensors").write_bytes(b"damaged")
    assert main([*command, "--engine", "ray"]) == 2
    assert "install foveal[ray]" in capsys.readouterr().err
    assert not Path(command[-1]).exists()


def test_verify_of_what_is_no_store_is_an_error(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command[:2], *command[4:], "--verify"]) == 2
    assert "is not a feature store" in capsys.readouterr().err


def test_extract_refuses_what_is_no_store_and_what_is_no_source(
    command: list[str], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command[:-1], str(photos)]) == 2
    assert "exists and is not a feature store; choose another place" in capsys.readouterr().err
    assert main(["extract", "no/where", *command[2:]]) == 2
    assert "no/where does not exist" in capsys.readouterr().err


def test_store_inside_the_folder_of_images_is_refused(
    command: list[str], photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    for images, out in ((".", "features"), (str(photos), "cat/features")):
        assert main(["extract", images, *command[2:-1], out]) == 2
        said = capsys.readouterr().err
        assert f"{out} lies inside {images}" in said
        assert f"choose another place: {photos.parent / 'features'}" in said
        assert not Path(out).exists()


def test_one_image_file_is_a_set_of_one(command: list[str], photos: Path, tmp_path: Path) -> None:
    assert main(["extract", str(photos / "cat" / "5.png"), *command[2:]]) == 0
    assert FeatureStore.open(tmp_path / "store").rows.column("uri").to_pylist() == ["5.png"]


def test_pattern_that_matches_nothing_says_so(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extract", "no/*.tar", *command[2:]]) == 2
    assert "the pattern no/*.tar matches no file; check its folder and its ending" in capsys.readouterr().err


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Extraction:
    """Processes that extract the same long list into the same store, on one thread."""

    def __init__(self, photos: Path, model: Path, out: Path) -> None:
        listed = [path.relative_to(photos.parent) for path in sorted(photos.rglob("*.png"))] * (NUM_SHARDS * 20 // 24)
        (photos.parent / "list.txt").write_text("\n".join(map(str, listed)))
        self.out = out
        code = "import sys, torch; torch.set_num_threads(1); from foveal.cli.main import main; sys.exit(main())"
        options = ["--tokens=cls,patches", "--dtype=int8", "--pca=7", "--batch-size=16", "--shard-size=20"]
        source = str(photos.parent / "list.txt")
        self.arguments = ["extract", source, f"--model={model}", f"--out={out}", "--max-bad-share=0.1", *options]
        self.command = [sys.executable, "-c", code, *self.arguments]

    def start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finished(self) -> dict[str, int]:
        """The finished shards, with what tells a file from its copy."""
        return {path.parent.name: path.stat().st_ino for path in self.out.glob("shards/[0-9]*/done.json")}

    def staged(self) -> bool:
        return any(self.out.glob("shards/.*.tmp/*.npy"))

    def interrupt(self, sent: signal.Signals, reached: Callable[[], bool], delay_s: float) -> tuple[int, str]:
        with self.start() as process:
            deadline = time.monotonic() + 60
            while not reached() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.0005)
            time.sleep(delay_s)
            process.send_signal(sent)
            _, errors = process.communicate(timeout=60)
        return process.returncode, errors


def test_store_after_kills_equals_the_uninterrupted_one(photos: Path, model_folder: Path, tmp_path: Path) -> None:
    (photos / "cat" / "1.png").write_bytes(b"damaged")
    whole, killed = (Extraction(photos, model_folder, tmp_path / name) for name in ("whole", "killed"))
    generator = random.Random(0)
    before: dict[str, int] = {}

    def reached() -> bool:
        return len(killed.finished()) >= len(before) + 2 and killed.staged()

    for _ in range(3):
        code, errors = killed.interrupt(signal.SIGKILL, reached, 0.02 * generator.random())
        assert code == -signal.SIGKILL, errors
        assert before.items() <= killed.finished().items()  # finished shards are not redone
        before = killed.finished()
        assert 0 < len(before) < NUM_SHARDS
    for sent, expected, said in ((signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")):
        code, errors = killed.interrupt(sent, reached, 0.0)
        assert code == expected, errors
        assert "run the same command again to continue" in errors
        assert errors.splitlines()[-1] == said
        assert "Traceback" not in errors
        assert not killed.staged()  # what was being written is gone
        assert before.items() <= killed.finished().items()
        before = killed.finished()
    for run in (killed, whole):
        assert main(run.arguments) == 0
    assert before.items() <= killed.finished().items()
    assert contents(killed.out) == contents(whole.out)
    store = FeatureStore.open(killed.out)
    numbers = [*store.rows.column("row").to_pylist(), *store.bad_rows.column("row").to_pylist()]
    assert sorted(numbers) == list(range(NUM_SHARDS * 20))
    assert len(store.bad_rows) == NUM_SHARDS * 20 // 24
    assert np.isfinite(store.read("patches")).all()
