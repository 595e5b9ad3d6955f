import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from foveal.errors import CheckpointError
from foveal.pretrain.checkpoint import MANIFEST, check_checkpoint, list_checkpoints, load_newest, save_checkpoint


def _tensors(step: int, size: int = 5) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    return {
        "student": {"a": torch.randn(3, size, generator=generator), "b": torch.tensor(float(step))},
        "optimizer": {"a.step": torch.tensor(3), "a.exp_avg": torch.randn(3, size, generator=generator).T},
    }


def _save(folder: Path, step: int, *, keep: int = 3) -> Path:
    return save_checkpoint(folder, step=step, tensors=_tensors(step), state={"skipped": [1]}, keep=keep)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_comes_back_to_the_bit(tmp_path: Path) -> None:
    _save(tmp_path / "checkpoints", 7)
    found = load_newest(tmp_path / "checkpoints")
    assert found is not None
    tensors, state = found
    assert state == {"step": 7, "skipped": [1]}
    assert tensors.keys() == {"student", "optimizer"}
    for stem, named in _tensors(7).items():
        assert tensors[stem].keys() == named.keys()
        for name, value in named.items():
            assert torch.equal(tensors[stem][name], value)
            assert tensors[stem][name].dtype == value.dtype


def test_no_checkpoint_yet_is_no_error(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "checkpoints") is None


def test_empty_tensors_are_kept_too(tmp_path: Path) -> None:
    """Before the first good step the optimizer holds nothing."""
    save_checkpoint(tmp_path, step=0, tensors={"optimizer": {}}, state={}, keep=1)
    found = load_newest(tmp_path)
    assert found is not None
    assert found[0] == {"optimizer": {}}


def test_the_newest_stay(tmp_path: Path) -> None:
    for step in (3, 6, 9, 12):
        _save(tmp_path, step, keep=2)
    assert _names(tmp_path) == ["step_00000009", "step_00000012"]


def test_a_later_damaged_one_does_not_push_out_a_good_one(tmp_path: Path) -> None:
    """After going back from a damaged step 9, the checkpoint of step 7 must survive its own retention."""
    _save(tmp_path, 6, keep=1)
    (_save(tmp_path, 9, keep=2) / MANIFEST).unlink()
    _save(tmp_path, 7, keep=1)
    found = load_newest(tmp_path)
    assert found is not None
    assert found[1]["step"] == 7


def test_a_copy_by_the_user_is_neither_read_nor_counted(tmp_path: Path) -> None:
    (tmp_path / "step_backup").mkdir(parents=True)
    _save(tmp_path, 3, keep=1)
    _save(tmp_path, 6, keep=1)
    assert _names(tmp_path) == ["step_00000006", "step_backup"]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000006"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    path = _save(tmp_path, 3)
    (path / "student.safetensors").write_bytes(b"damaged")
    assert check_checkpoint(path) == "student.safetensors is damaged"
    _save(tmp_path, 3)
    assert check_checkpoint(path) is None


@pytest.mark.parametrize("damage", ["cut", "flip", "missing", "no manifest", "torn manifest", "wrong manifest"])
def test_damaged_newest_is_named_and_the_one_before_is_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    _save(tmp_path, 3)
    path = _save(tmp_path, 6)
    weights, manifest = path / "student.safetensors", path / MANIFEST
    if damage == "cut":
        os.truncate(weights, 10)
    elif damage == "flip":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "missing":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "torn manifest":
        manifest.write_text(manifest.read_text()[:20])
    else:
        manifest.write_text(json.dumps([1, 2]))
    with caplog.at_level(logging.WARNING):
        found = load_newest(tmp_path)
    assert found is not None
    assert found[1]["step"] == 3
    assert "step_00000006 is not used" in caplog.text


def test_all_damaged_is_an_error_that_names_each(tmp_path: Path) -> None:
    for step in (3, 6):
        (_save(tmp_path, step) / MANIFEST).write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"no intact checkpoint in .*step_00000006: .*step_00000003: .*restore one"
    ):
        load_newest(tmp_path)


def test_torn_temporary_folders_are_ignored_and_cleaned_up(tmp_path: Path) -> None:
    _save(tmp_path, 3)
    torn = tmp_path / ".step_00000006.tmp"
    torn.mkdir()
    (torn / "student.safetensors").write_bytes(b"half")
    found = load_newest(tmp_path)
    assert found is not None
    assert found[1]["step"] == 3
    _save(tmp_path, 9)
    assert _names(tmp_path) == ["step_00000003", "step_00000009"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of one megabyte; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, timeout=30)
    except OSError:
        pytest.skip("no mount command")
    if done.returncode:
        pytest.skip("not allowed to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, timeout=30)


def test_full_disk_leaves_the_last_good_one(small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    big = {"student": {"a": torch.zeros(150_000)}}  # 600 kB: one fits, two do not
    save_checkpoint(folder, step=3, tensors=big, state={}, keep=1)
    with pytest.raises(
        CheckpointError, match=r"cannot write .*step_00000006: .*No space left.*needs 600,000 bytes, \d"
    ):
        save_checkpoint(folder, step=6, tensors=big, state={}, keep=1)
    assert _names(folder) == ["step_00000003"]
    assert check_checkpoint(folder / "step_00000003") is None
    save_checkpoint(folder, step=6, tensors=_tensors(6), state={}, keep=1)
    assert _names(folder) == ["step_00000006"]


def test_a_file_that_may_not_grow_leaves_the_last_good_one(tmp_path: Path) -> None:
    """The same without the right to mount: the process may not write files above 100 kB."""
    code = """
import resource, sys, torch
from pathlib import Path
from foveal.errors import CheckpointError
from foveal.pretrain.checkpoint import load_newest, save_checkpoint
folder = Path(sys.argv[1])
save_checkpoint(folder, step=3, tensors={"student": {"a": torch.zeros(9)}}, state={}, keep=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    save_checkpoint(folder, step=6, tensors={"student": {"a": torch.zeros(90_000)}}, state={}, keep=1)
except CheckpointError as error:
    print(error)
print(load_newest(folder)[1])
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    message, state = done.stdout.splitlines()
    assert "it needs 360,000 bytes" in message
    assert "Earlier checkpoints are untouched" in message
    assert state == "{'step': 3}"
    assert _names(tmp_path) == ["step_00000003"]
