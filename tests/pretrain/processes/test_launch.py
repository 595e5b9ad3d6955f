"""Processes find each other, and none waits for one that is gone."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from ranks import on_ranks

from foveal.errors import ImageSetError, RunError
from foveal.pretrain.processes import launch
from foveal.pretrain.processes.launch import joined


def _one_fails(error: Exception) -> None:
    with joined() as world:
        world.gather(None)
        if world.rank == 1:
            raise error
        world.gather(None)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImageSetError("no usable image found"), "no usable image found"),
        (RuntimeError("out of memory"), r"RuntimeError\('out of memory'\)"),
    ],
    ids=["ours", "any"],
)
def test_an_error_in_one_process_ends_all_with_its_message(error: Exception, said: str) -> None:
    first, second, third = on_ranks(3, _one_fails, error)
    assert type(second) is type(error)
    assert str(second) == str(error)
    for other in (first, third):
        assert isinstance(other, RunError)
        with pytest.raises(RunError, match=f"^process 1 of 3 stopped: {said}$"):
            raise other


def _one_is_killed(number: int) -> None:
    with joined() as world:
        world.gather(None)
        if world.rank == 2:
            os.kill(os.getpid(), number)
        world.gather(None)


def test_a_killed_process_ends_the_others() -> None:
    started = time.monotonic()
    first, second, killed = on_ranks(3, _one_is_killed, signal.SIGKILL)
    assert killed is None
    for other in (first, second):
        with pytest.raises(RunError, match=r"^process 2 of 3 was lost .*; run the same command again to continue"):
            raise other
    assert time.monotonic() - started < 90  # 30 s on a machine that does nothing else


def _one_stands_still(errors: Path) -> None:
    launch._SILENT_S, launch._GRACE_S = 6.0, 1.0
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    _one_is_killed(signal.SIGSTOP)


def test_a_process_that_stands_still_ends_those_that_wait_for_it(tmp_path: Path) -> None:
    """Its connections stay open, as those of a computer that has lost its power: only the beat tells."""
    assert on_ranks(3, _one_stands_still, tmp_path / "errors", heard=2) == [None, None]
    errors = (tmp_path / "errors").read_text().splitlines()
    assert [line for line in errors if line.startswith("error: process 2 of 3 was lost ")] == errors
    assert len(errors) == 2


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "two"}, "the environment says WORLD_SIZE='two', expected a number"),
        ({"WORLD_SIZE": "2"}, "the environment says RANK='', expected a number"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE is set but MASTER_ADDR is not"),
    ],
)
def test_half_an_environment_is_refused(variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=said), joined():
        pass


def test_processes_that_do_not_find_each_other_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_JOIN_S", 1.0)
    variables = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=r"process 1 of 2 did not find the others: .*; check MASTER_ADDR"), joined():
        pass


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "9", "LOCAL_RANK": str(torch.cuda.device_count()), "WORLD_SIZE": "16"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RunError, match=r"process 9 of 16 is number .* start no more processes"), joined(gpus=True):
        pass
