"""Whole runs in several processes against the run in one."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor

from foveal.pretrain.checkpoint import list_checkpoints, open_checkpoint
from foveal.pretrain.loop import Outcome, Progress, pretrain
from foveal.pretrain.recipe import Recipe
from foveal.pretrain.run import CHECKPOINTS, read_metrics

RATE = "images_per_s"


def _run(recipe: Recipe, stop_after: int | None = None, signalled: int | None = None) -> Outcome:
    def listener(progress: Progress) -> None:
        if progress.step == signalled:
            os.kill(os.getpid(), signal.SIGTERM)

    return pretrain(recipe, stop_after=stop_after, listener=listener)


def _weights(run: Path) -> dict[str, Tensor]:
    newest = open_checkpoint(list_checkpoints(run / CHECKPOINTS)[-1])
    return {f"{stem}.{name}": value for stem in newest.tensors for name, value in newest.read(stem).items()}


def _same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run)]


def test_canonical_runs_of_one_two_and_four_processes_are_equal_to_the_bit(tiny: Any, tmp_path: Path) -> None:
    settings = ["batch_size=8", "total_steps=4", "parallel.canonical=true"]
    pretrain(tiny(*settings, out="1"))
    for size in (2, 4):
        outcomes = on_ranks(size, _run, tiny(*settings, out=str(size)))
        assert all(outcome == Outcome(tmp_path / str(size), 4, None) for outcome in outcomes), outcomes
        assert _same_bits(_weights(tmp_path / str(size)), _weights(tmp_path / "1"))
        assert _losses(tmp_path / str(size)) == pytest.approx(_losses(tmp_path / "1"), rel=1e-6)


def test_the_number_of_processes_may_change_on_resume(tiny: Any, tmp_path: Path) -> None:
    """1 -> 2 -> 4 -> 1 against 1: losses within 1e-3 over 50 steps.

    Among eight of these few pictures KoLeo's nearest are so near that the logarithm of their distance is rounding: one
    process, its start changed by 1e-7, differs by 3e-3 then. Pairs are far enough.
    """
    settings = ["batch_size=8", "total_steps=50", "checkpoints.every_steps=100", "objective.koleo_group=2"]
    pretrain(tiny(*settings, out="whole"))
    for size, steps in ((1, 13), (2, 12), (4, 12), (1, 13)):
        outcomes = on_ranks(size, _run, tiny(*settings), steps)
        assert [type(outcome) for outcome in outcomes] == [Outcome] * size, outcomes
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == list(range(50))
    assert _losses(tmp_path / "run") == pytest.approx(_losses(tmp_path / "whole"), rel=1e-3)


def test_a_run_in_shards_continues_in_shards_and_whole(tiny: Any, tmp_path: Path) -> None:
    """Two processes with FSDP2, again two, then one that holds everything, against one all along.

    Without KoLeo: untrained features are so near to each other that their distances are mostly rounding.
    """
    settings = ["batch_size=8", "total_steps=6", "checkpoints.every_steps=100", "objective.koleo_weight=0"]
    pretrain(tiny(*settings, out="whole"))
    for size, steps in ((2, 3), (2, 1), (1, 2)):
        strategy = ["parallel.strategy=fsdp"] if size > 1 else []
        outcomes = on_ranks(size, _run, tiny(*settings, *strategy), steps)
        assert [type(outcome) for outcome in outcomes] == [Outcome] * size, outcomes
        if steps == 3:
            newest = open_checkpoint(list_checkpoints(tmp_path / "run" / CHECKPOINTS)[-1])
            name = "backbone.blocks.0.attn.qkv.weight"
            for stem, key in (("student", name), ("teacher", name), ("optimizer", f"{name}.exp_avg")):
                assert [piece[0] for piece in newest.tensors[stem][key]["pieces"]] == [0, 1]
    assert _losses(tmp_path / "run") == pytest.approx(_losses(tmp_path / "whole"), rel=1e-3)
    ours, reference = _weights(tmp_path / "run"), _weights(tmp_path / "whole")
    assert ours.keys() == reference.keys()
    assert all(torch.allclose(ours[name], value, rtol=1e-3, atol=1e-5) for name, value in reference.items())
