"""Checkpoints written beside the training: nothing waits, nothing is lost, nothing is hidden."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from disks import make_read_only, mounted_disk, no_file_above

from foveal.errors import CheckpointError, RunError
from foveal.pretrain.checkpoints.reader import list_checkpoints, newest_intact, open_checkpoint
from foveal.pretrain.checkpoints.writer import CheckpointWriter

Tensors = dict[str, dict[str, torch.Tensor]]
DEADLINE_S = 60


def _tensors(value: float) -> Tensors:
    return {"student": {"a": torch.full((300_000,), float(value))}}  # 1.2 MB


def _steps(folder: Path) -> list[int]:
    return [open_checkpoint(path).step for path in list_checkpoints(folder)]


def _fail(writer: CheckpointWriter, step: int) -> None:
    """Let a save fail in its thread."""
    with no_file_above(100_000):
        writer.save(step, tensors=_tensors(step), state={})
        deadline = time.monotonic() + DEADLINE_S
        while not writer.failed:
            assert time.monotonic() < deadline
            time.sleep(0.001)


class Held:
    """What the thread does after a checkpoint: wait until the test lets it go on."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.go_on = threading.Event()

    def __call__(self, path: Path) -> None:
        assert self.go_on.wait(DEADLINE_S)
        self.seen.append(path.name)


def test_training_goes_on_while_a_checkpoint_is_written_and_the_next_save_waits(tmp_path: Path) -> None:
    held = Held()
    with CheckpointWriter(tmp_path, keep=9, then=held) as writer:
        tensors = _tensors(1)
        writer.save(1, tensors=tensors, state={"skipped": [7]})
        tensors["student"]["a"].fill_(2)  # the next step; it must not be in the checkpoint of the first
        assert held.seen == []
        threading.Timer(0.05, held.go_on.set).start()
        writer.save(2, tensors=tensors, state={})
        assert held.seen[:1] == ["step_00000001"]
    assert held.seen == ["step_00000001", "step_00000002"]
    for step in (1, 2):
        found = open_checkpoint(tmp_path / f"step_{step:08d}")
        assert found.read("student")["a"].unique().tolist() == [step]
    assert open_checkpoint(tmp_path / "step_00000001").state() == {"step": 1, "skipped": [7]}


def test_a_failed_one_is_made_up_for_by_the_next_while_training_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with CheckpointWriter(tmp_path, keep=9) as writer:
        writer.save(1, tensors=_tensors(1), state={})
        writer.wait()
        assert not writer.failed
        _fail(writer, 2)
        with caplog.at_level(logging.WARNING):
            writer.save(3, tensors=_tensors(3), state={})
        assert _steps(tmp_path) == [1, 3]  # already here
        assert "step_00000002: " in caplog.text
        assert "Trying once more at step 3" in caplog.text
        assert not writer.failed


def test_two_failures_in_a_row_are_an_error_and_the_last_good_one_stays(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=9)
    writer.save(1, tensors=_tensors(1), state={})
    writer.wait()
    _fail(writer, 2)
    with no_file_above(100_000), pytest.raises(CheckpointError, match=r"step_00000003: .*it needs 1,200,000 bytes"):
        writer.save(3, tensors=_tensors(3), state={})
    assert _steps(tmp_path) == [1]


def test_a_failure_of_the_last_one_is_an_error_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="step_00000002"), CheckpointWriter(tmp_path, keep=9) as writer:
        _fail(writer, 2)


def _save_and_raise(writer: CheckpointWriter, error: BaseException, *, fails: bool = False) -> None:
    """Begin a save in the writer's context, and leave that by an error."""
    with writer:
        _fail(writer, 2) if fails else writer.save(1, tensors=_tensors(1), state={})
        raise error


def test_another_error_waits_for_the_checkpoint_and_is_the_one_that_is_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RunError, match="something else"):
        _save_and_raise(CheckpointWriter(tmp_path, keep=9), RunError("something else"))
    assert _steps(tmp_path) == [1]
    with caplog.at_level(logging.WARNING), pytest.raises(RunError, match="something else"):
        _save_and_raise(CheckpointWriter(tmp_path, keep=9), RunError("something else"), fails=True)
    assert "step_00000002: " in caplog.text


def test_an_interrupt_leaves_at_once(tmp_path: Path) -> None:
    held = Held()
    with pytest.raises(KeyboardInterrupt):
        _save_and_raise(CheckpointWriter(tmp_path, keep=9, then=held), KeyboardInterrupt())
    assert held.seen == []
    held.go_on.set()


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk with a checkpoint on it that then became read-only; needs the right to mount."""
    with mounted_disk(tmp_path / "disk", size="9m") as disk:
        with CheckpointWriter(disk, keep=1) as writer:
            writer.save(1, tensors=_tensors(1), state={})
        make_read_only(disk)
        yield disk


def test_a_disk_that_became_read_only_keeps_the_last_good_one(read_only_disk: Path) -> None:
    writer = CheckpointWriter(read_only_disk, keep=1)
    writer.save(2, tensors=_tensors(2), state={})
    with pytest.raises(CheckpointError, match=r"Read-only file system.*it needs 1,200,000 bytes, [\d,]+ are free"):
        writer.wait()
    found = newest_intact(read_only_disk)
    assert found is not None
    assert found.step == 1
