"""Who may write in a run folder, and what of the metrics stays."""

import json
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from foveal.errors import RunError
from foveal.pretrain.run import LEDGER, METRICS, RECIPE, RunFolder, read_metrics
from foveal.pretrain.run_files import MetricsFile

HASH = "0123456789abcdef"


def _open(recipe: Any, images_hash: str = HASH, *, allowed: Collection[str] = ()) -> None:
    RunFolder(recipe, images_hash=images_hash, allowed_changes=allowed).close()


def test_settings_that_numbers_depend_on_may_not_change(tiny: Any) -> None:
    _open(tiny())
    with pytest.raises(RunError) as caught:
        _open(tiny("optimizer.base_lr=0.5", "seed=3", "heads.ibot=null"))
    message = str(caught.value)
    assert "holds another run: " in message
    assert "optimizer.base_lr was 0.01, is 0.5" in message
    assert "seed was 0, is 3" in message
    assert "heads.ibot" in message
    assert "batch_size" not in message
    assert "heads.ibot.hidden was 12, is None (it cannot change: the checkpoints hold the tensors of" in message
    assert message.endswith("continue it, --allow-change KEY for each that is meant, or another out=")


def test_free_settings_may_change(tiny: Any, photos: Path, tmp_path: Path) -> None:
    _open(tiny())
    photos.rename(tmp_path / "moved")
    changed = ["num_workers=1", "max_bad_share=0.5", "checkpoints.every_steps=1", "log_every_steps=2", "device=cpu"]
    _open(tiny(f"images={tmp_path / 'moved'}", *changed))
    assert "every_steps: 1" in (tmp_path / "run" / RECIPE).read_text()


def test_allowed_changes_are_taken_and_the_recipe_before_is_kept(tiny: Any, tmp_path: Path) -> None:
    _open(tiny())
    first = (tmp_path / "run" / RECIPE).read_text()
    with pytest.raises(RunError, match=r"holds another run: seed was 0, is 3\. Use"):
        _open(tiny("seed=3", "optimizer.base_lr=0.5"), allowed=["optimizer"])
    _open(tiny("seed=3", "optimizer.base_lr=0.5"), "ffff", allowed=["seed", "optimizer.base_lr", "images"])
    second = (tmp_path / "run" / RECIPE).read_text()
    assert second.startswith("# images: ffff")
    assert (tmp_path / "run" / "recipe.1.yaml").read_text() == first
    _open(tiny("seed=3", "optimizer.base_lr=0.5"), "ffff")  # now these are its settings
    _open(tiny(), allowed=["seed", "optimizer", "images"])
    assert (tmp_path / "run" / "recipe.2.yaml").read_text() == second
    assert (tmp_path / "run" / RECIPE).read_text() == first


@pytest.mark.parametrize("key", ["backbone.depth=3", "heads.dino.hidden=9"])
def test_the_shape_of_the_network_cannot_change_even_on_purpose(tiny: Any, key: str) -> None:
    _open(tiny())
    with pytest.raises(RunError, match=r"it cannot change: the checkpoints hold the tensors of that network"):
        _open(tiny(key), allowed=[key.split("=")[0]])
    _open(tiny("backbone.drop_path_rate=0.1"), allowed=["backbone.drop_path_rate"])


def test_other_images_are_refused(tiny: Any) -> None:
    _open(tiny())
    with pytest.raises(RunError, match=r"the images are not the same \(set 0123456789ab, now ffff\)"):
        _open(tiny(), "ffff")


def test_a_folder_with_something_else_is_left_alone(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="is not empty and not a run; choose another out="):
        _open(tiny())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_file_and_an_unwritable_place_are_refused(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="cannot write in"):
        _open(tiny())
    with pytest.raises(RunError, match="cannot write in"):
        _open(tiny("out=/proc/run"))


def test_an_empty_folder_and_one_of_a_run_killed_at_its_start_are_taken(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").touch()
    (tmp_path / "run" / f".{RECIPE}.tmp").write_text("half a rec")
    _open(tiny())
    assert (tmp_path / "run" / RECIPE).is_file()


@pytest.mark.parametrize("text", ["# images: x\n- 1\n", "# images: x\na: [", ""])
def test_a_damaged_recipe_is_an_error_in_words(tiny: Any, tmp_path: Path, text: str) -> None:
    _open(tiny())
    (tmp_path / "run" / RECIPE).write_text(text)
    with pytest.raises(RunError, match=r"recipe.yaml is damaged; restore it or choose another out="):
        _open(tiny())


def test_one_process_at_a_time(tiny: Any, tmp_path: Path) -> None:
    code = f"""
import sys
from foveal.pretrain.run import RunFolder
from foveal.pretrain.recipe import load_recipe
recipe = load_recipe({str(tmp_path / "tiny.yaml")!r}, ["images=x", {f"out={tmp_path / 'run'}"!r}])
folder = RunFolder(recipe, images_hash={HASH!r})
print("mine", flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(RunError, match="is being written by another process; wait for it or choose another folder"):
            _open(tiny())
        other.kill()
        other.wait(timeout=60)
    _open(tiny())  # a killed process holds no lock


def test_metrics_of_steps_to_be_repeated_are_dropped(tiny: Any, tmp_path: Path) -> None:
    folder = RunFolder(tiny(), images_hash=HASH)
    folder.keep_metrics_before(0)
    for step in range(-1, 5):
        folder.log({"step": step, "loss": step / 3})
    folder.close()
    path = tmp_path / "run" / METRICS
    before = path.read_text().splitlines()
    path.write_text(path.read_text() + '{"step": 5, "lo')  # cut off by a crash
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [-1, 0, 1, 2, 3, 4]
    folder = RunFolder(tiny(), images_hash=HASH)
    folder.keep_metrics_before(3)
    folder.log({"step": 3, "loss": 1.0})
    folder.close()
    assert path.read_text().splitlines() == [*before[:4], '{"step": 3, "loss": 1.0}']


def test_starting_over_from_step_0_repeats_the_line_before_it(tiny: Any, tmp_path: Path) -> None:
    folder = RunFolder(tiny(), images_hash=HASH)
    folder.keep_metrics_before(0)
    folder.log({"step": -1, "knn": 3.0})
    folder.close()
    folder = RunFolder(tiny(), images_hash=HASH)
    folder.keep_metrics_before(0)
    folder.close()
    assert read_metrics(tmp_path / "run") == []


def test_what_is_not_finite_is_null(tiny: Any, tmp_path: Path) -> None:
    folder = RunFolder(tiny(), images_hash=HASH)
    folder.keep_metrics_before(0)
    folder.log({"step": 0, "loss": float("nan"), "ibot": float("inf"), "koleo": 1.5})
    folder.close()

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    line = json.loads((tmp_path / "run" / METRICS).read_text(), parse_constant=refuse)
    assert line == {"step": 0, "loss": None, "ibot": None, "koleo": 1.5}


def test_a_full_disk_is_an_error_in_words(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / METRICS)
    metrics.open(0)
    metrics.close()
    metrics._file = open("/dev/full", "w")  # noqa: SIM115 (closed with the metrics)
    with pytest.raises(RunError, match=r"cannot write .*metrics\.jsonl: .*No space left.*; make room"):
        metrics.log({"step": 0})
    metrics.close()


def test_no_metrics_yet(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    assert LEDGER == "bad_images.jsonl"  # named in the documentation
