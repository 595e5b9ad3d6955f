import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from disks import mounted_disk

from foveal.errors import CheckpointError
from foveal.pretrain.checkpoints.reader import (
    MANIFEST,
    find_damage,
    list_checkpoints,
    newest_intact,
    open_checkpoint,
    sha256_of_content,
)
from foveal.pretrain.checkpoints.snapshot import take_snapshot
from foveal.pretrain.checkpoints.writer import write_checkpoint

Tensors = dict[str, dict[str, torch.Tensor]]


def _tensors(step: int, size: int = 5) -> Tensors:
    generator = torch.Generator().manual_seed(step)
    return {
        "student": {"a": torch.randn(3, size, generator=generator), "b": torch.tensor(float(step))},
        "optimizer": {"a.step": torch.tensor(3), "a.exp_avg": torch.randn(3, size, generator=generator).T},
    }


def _save(folder: Path, step: int, *, keep: int = 3, tensors: Tensors | None = None) -> Path:
    tensors = _tensors(step) if tensors is None else tensors
    return write_checkpoint(folder, take_snapshot(tensors, step=step, state={"skipped": [1]}), keep=keep)


def _newest_step(folder: Path) -> int:
    found = newest_intact(folder)
    assert found is not None
    return found.step


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_comes_back_to_the_bit(tmp_path: Path) -> None:
    _save(tmp_path / "checkpoints", 7)
    found = newest_intact(tmp_path / "checkpoints")
    assert found is not None
    assert (found.step, found.num_processes) == (7, 1)
    assert found.state() == {"step": 7, "skipped": [1]}
    assert found.tensors.keys() == {"student", "optimizer"}
    assert found.num_bytes == sum(file.stat().st_size for file in found.path.iterdir() if file.name != MANIFEST)
    for stem, named in _tensors(7).items():
        tensors = found.read(stem)
        assert tensors.keys() == named.keys()
        for name, value in named.items():
            assert torch.equal(tensors[name], value)
            assert tensors[name].dtype == value.dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8])
def test_types_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    values = {"a": torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)}
    read = open_checkpoint(_save(tmp_path, 1, tensors={"student": values})).read("student")
    assert read["a"].dtype == dtype
    assert torch.equal(read["a"], values["a"])


def test_a_snapshot_is_a_copy_and_its_memory_is_used_again() -> None:
    values = {"student": {"a": torch.arange(6.0).view(2, 3)}}
    first = take_snapshot(values, step=1, state={})
    values["student"]["a"].zero_()
    assert first.tensors["student"]["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    second = take_snapshot(values | {"optimizer": {"b": torch.ones(5)}}, step=2, state={}, into=first)
    assert second.tensors["student"]["a"].data_ptr() == first.tensors["student"]["a"].data_ptr()
    assert not second.tensors["student"]["a"].any()
    assert second.num_bytes == 4 * (6 + 5)
    other_shape = take_snapshot({"student": {"a": torch.ones(7)}}, step=3, state={}, into=second)
    assert other_shape.tensors["student"]["a"].tolist() == [1] * 7


def test_no_checkpoint_yet_is_no_error(tmp_path: Path) -> None:
    assert newest_intact(tmp_path / "checkpoints") is None


def test_empty_tensors_are_kept_too(tmp_path: Path) -> None:
    """Before the first good step the optimizer holds nothing."""
    path = _save(tmp_path, 0, tensors={"optimizer": {}, "student": {"a": torch.zeros(0, 3)}})
    found = newest_intact(tmp_path)
    assert found is not None
    assert found.read("optimizer") == {}
    assert found.read("student")["a"].shape == (0, 3)
    assert not (path / "optimizer.safetensors").exists()


def test_the_newest_stay(tmp_path: Path) -> None:
    for step in (3, 6, 9, 12):
        _save(tmp_path, step, keep=2)
    assert _names(tmp_path) == ["step_00000009", "step_00000012"]


def test_a_later_damaged_one_does_not_push_out_a_good_one(tmp_path: Path) -> None:
    """After going back from a damaged step 9, the checkpoint of step 7 must survive its own retention."""
    _save(tmp_path, 6, keep=1)
    (_save(tmp_path, 9, keep=2) / MANIFEST).unlink()
    _save(tmp_path, 7, keep=1)
    assert _newest_step(tmp_path) == 7


def test_a_copy_by_the_user_is_neither_read_nor_counted(tmp_path: Path) -> None:
    (tmp_path / "step_backup").mkdir(parents=True)
    _save(tmp_path, 3, keep=1)
    _save(tmp_path, 6, keep=1)
    assert _names(tmp_path) == ["step_00000006", "step_backup"]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000006"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    path = _save(tmp_path, 3)
    (path / "student.safetensors").write_bytes(b"damaged")
    assert find_damage(path) == "student.safetensors is damaged"
    _save(tmp_path, 3)
    assert find_damage(path) is None


@pytest.mark.parametrize(
    "damage", ["cut", "flip", "missing", "no manifest", "torn manifest", "wrong manifest", "changed manifest"]
)
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
    elif damage == "wrong manifest":
        manifest.write_text(json.dumps([1, 2]))
    else:
        manifest.write_text(manifest.read_text().replace("[3, 5]", "[5, 3]"))
    with caplog.at_level(logging.WARNING):
        assert _newest_step(tmp_path) == 3
    assert "step_00000006 is not used" in caplog.text


def test_another_format_is_an_error_and_not_taken_for_damage(tmp_path: Path) -> None:
    """Going back to an older checkpoint would throw away what the other version has trained."""
    _save(tmp_path, 3)
    manifest = _save(tmp_path, 6) / MANIFEST
    content = json.loads(manifest.read_text())["content"] | {"format": 7}
    manifest.write_text(json.dumps({"sha256": sha256_of_content(content), "content": content}))
    with pytest.raises(CheckpointError, match=r"step_00000006 has format 7, this version of foveal reads 1; continue"):
        newest_intact(tmp_path)


def test_all_damaged_is_an_error_that_names_each(tmp_path: Path) -> None:
    for step in (3, 6):
        (_save(tmp_path, step) / MANIFEST).write_text("{}")
    with pytest.raises(
        CheckpointError, match=r"no intact checkpoint in .*step_00000006: .*step_00000003: .*restore one"
    ):
        newest_intact(tmp_path)


def test_torn_temporary_folders_are_ignored_and_cleaned_up(tmp_path: Path) -> None:
    _save(tmp_path, 3)
    torn = tmp_path / ".step_00000006.tmp"
    torn.mkdir()
    (torn / "student.safetensors").write_bytes(b"half")
    assert _newest_step(tmp_path) == 3
    _save(tmp_path, 9)
    assert _names(tmp_path) == ["step_00000003", "step_00000009"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of one megabyte; needs the right to mount."""
    with mounted_disk(tmp_path / "disk", size="1m") as disk:
        yield disk


def test_full_disk_leaves_the_last_good_one(small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    big = {"student": {"a": torch.zeros(150_000)}}  # 600 kB: one fits, two do not
    _save(folder, 3, tensors=big, keep=1)
    with pytest.raises(
        CheckpointError, match=r"cannot write .*step_00000006: .*No space left.*needs 600,000 bytes, \d"
    ):
        _save(folder, 6, tensors=big, keep=1)
    assert _names(folder) == ["step_00000003"]
    assert find_damage(folder / "step_00000003") is None
    _save(folder, 6, keep=1)
    assert _names(folder) == ["step_00000006"]


def test_a_file_that_may_not_grow_leaves_the_last_good_one(tmp_path: Path) -> None:
    """The same without the right to mount: the process may not write files above 100 kB."""
    code = """
import resource, sys, torch
from pathlib import Path
from foveal.errors import CheckpointError
from foveal.pretrain.checkpoints.reader import newest_intact
from foveal.pretrain.checkpoints.writer import write_checkpoint
from foveal.pretrain.checkpoints.snapshot import take_snapshot
def save(step, size):
    snapshot = take_snapshot({"student": {"a": torch.zeros(size)}}, step=step, state={})
    write_checkpoint(Path(sys.argv[1]), snapshot, keep=1)
save(3, 9)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    save(6, 90_000)
except CheckpointError as error:
    print(error)
print(newest_intact(Path(sys.argv[1])).step)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    message, step = done.stdout.splitlines()
    assert "it needs 360,000 bytes, " in message
    assert "are free, and no file may exceed 100,000 bytes (ulimit -f). " in message
    assert "Earlier checkpoints are untouched" in message
    assert step == "3"
    assert _names(tmp_path) == ["step_00000003"]
