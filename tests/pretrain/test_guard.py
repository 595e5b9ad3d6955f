"""The way back when steps are not finite again and again."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from foveal.errors import DivergedError
from foveal.pretrain.data.loader import RawBatch, StepBatches
from foveal.pretrain.guard import Guard
from foveal.pretrain.loop import Trainer, pretrain
from foveal.pretrain.run import TIMINGS, read_metrics

Break = Callable[..., None]


@pytest.fixture
def break_steps(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Put a NaN into the crops of chosen steps."""
    whole = Trainer.train_step
    get = StepBatches.__getitem__

    def chosen(*steps: int) -> None:
        now = [0]

        def train_step(self: Trainer, raw: Iterable[RawBatch]) -> dict[str, float]:
            now[0] = self.step
            return whole(self, raw)

        def broken(self: StepBatches, number: Any) -> Any:
            batch = get(self, number)
            if now[0] in steps:
                batch.global_crops[0, 0, 3, 5] = float("nan")
            return batch

        monkeypatch.setattr(Trainer, "train_step", train_step)
        monkeypatch.setattr(StepBatches, "__getitem__", broken)

    return chosen


def _lines(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(run)]


def _weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def test_rows_and_ways_back_by_hand() -> None:
    guard = Guard()
    assert [guard.skip(step) for step in (3, 7, 8)] == [False, False, False]
    assert guard.skip(9)
    assert list(guard.ways_back(9, every_steps=2)) == [2, 4, 6]
    assert list(guard.ways_back(9, every_steps=7)) == [7]  # weights of before step 7, the first of the row
    assert list(guard.ways_back(9, every_steps=8)) == []
    guard.go_back(6, step=9)
    assert [guard.skip(step) for step in (10, 11)] == [False, False]  # 9 belongs to the row before
    assert guard.skip(12)
    assert list(guard.ways_back(12, every_steps=2)) == []  # 10 holds the weights of 6
    assert list(guard.ways_back(18, every_steps=2)) == [12, 14, 16]
    again = Guard()
    again.restore(guard.state())
    assert (again.skipped, again.undone) == ([3, 7, 8, 9, 10, 11, 12], [(6, 10)])


def test_three_in_a_row_go_back_and_leave_the_steps_between_out(
    tiny: Any, tmp_path: Path, break_steps: Break, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ["total_steps=12", "checkpoints.every_steps=3", "checkpoints.keep=9"]
    break_steps(4, 5, 6)
    with caplog.at_level(logging.WARNING):
        assert pretrain(tiny(*settings)).step == 12
    assert "went back to the checkpoint of step 3; steps 3 to 6 are left out" in caplog.text
    lines = _lines(tmp_path / "run")
    assert [line["step"] for line in lines if "skipped" in line] == [4, 5, 6]
    assert [line["went_back_to"] for line in lines if "went_back_to" in line] == [3]

    # The same by hand: three steps, then step 7 and on with the weights of those.
    break_steps()
    assert pretrain(tiny(*settings, out="by_hand"), stop_after=3).step == 3
    resume = Trainer.resume

    def resume_at_7(self: Trainer) -> None:
        resume(self)
        self.step = 7

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "resume", resume_at_7)
        pretrain(tiny(*settings, out="by_hand"))
    assert _lines(tmp_path / "by_hand")[3:] == lines[7:]
    assert _weights(tmp_path / "by_hand") == _weights(tmp_path / "run")


@pytest.mark.parametrize(("keep", "stops"), [(9, (5, 1)), (9, (7, 1)), (9, (8, 3)), (2, (4, 1)), (2, (2, 1, 1, 1, 1))])
def test_a_run_that_went_back_in_pieces_equals_the_run_in_one(
    tiny: Any, tmp_path: Path, break_steps: Break, keep: int, stops: tuple[int, ...]
) -> None:
    """Interruptions between checkpoint and way back, right after it, and later: their checkpoints change nothing."""
    settings = ["total_steps=12", "checkpoints.every_steps=3", f"checkpoints.keep={keep}"]
    break_steps(4, 5, 6, 10)
    pretrain(tiny(*settings, out="whole"))
    for steps in stops:
        pretrain(tiny(*settings), stop_after=steps)
    pretrain(tiny(*settings))
    assert _lines(tmp_path / "run") == _lines(tmp_path / "whole")
    assert _weights(tmp_path / "run") == _weights(tmp_path / "whole")


def test_nowhere_to_go_back_to_stops_with_the_step_in_a_file(tiny: Any, tmp_path: Path, break_steps: Break) -> None:
    break_steps(0, 1, 2)
    with pytest.raises(
        DivergedError, match=r"3 steps in a row up to 2 were not finite, and there is no other"
    ) as caught:
        pretrain(tiny())
    path = tmp_path / "run" / "replay" / "step_00000002.safetensors"
    assert f"`foveal replay {path}`" in str(caught.value)
    assert path.is_file()


def test_the_same_weights_failing_twice_stop_the_run(tiny: Any, tmp_path: Path, break_steps: Break) -> None:
    break_steps(4, 5, 6, 8, 9, 10)
    settings = ["total_steps=40", "checkpoints.every_steps=3", "checkpoints.keep=9"]
    with pytest.raises(DivergedError, match="up to 10 were not finite again, after the run had gone back once"):
        pretrain(tiny(*settings))
    assert [path.name for path in (tmp_path / "run" / "replay").iterdir()] == ["step_00000010.safetensors"]
    with pytest.raises(DivergedError, match="up to 10 were not finite again"):
        pretrain(tiny(*settings))  # the same command comes to the same end


def test_a_run_that_recovered_may_go_back_again(tiny: Any, tmp_path: Path, break_steps: Break) -> None:
    break_steps(4, 5, 6, 14, 15, 16)
    settings = ["total_steps=20", "checkpoints.every_steps=3", "checkpoints.keep=9"]
    assert pretrain(tiny(*settings)).step == 20
    assert [line["went_back_to"] for line in _lines(tmp_path / "run") if "went_back_to" in line] == [3, 12]
    assert torch.isfinite(torch.tensor([line["loss"] for line in _lines(tmp_path / "run")[-3:]])).all()
