"""A whole run in one process: what it leaves, how it stops, and the guard before every update."""

import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from disks import no_file_above
from safetensors.torch import load_file
from torch import Tensor

import foveal
from foveal.errors import CheckpointError, ImageSetError, RecipeError, RunError
from foveal.images.imageset import ImageSet
from foveal.pretrain.checkpoints.reader import MANIFEST, list_checkpoints
from foveal.pretrain.data import loader
from foveal.pretrain.data.loader import MicroBatches, RawBatch
from foveal.pretrain.guard import Guard
from foveal.pretrain.learner import build_networks
from foveal.pretrain.loop import Progress, Trainer, pretrain
from foveal.pretrain.run import CHECKPOINTS, LEDGER, TIMINGS, RunFolder, read_metrics

LOSSES = {"loss", "dino_local", "dino_global", "ibot", "koleo"}
RATES = {"lr", "backbone_lr", "last_layer_lr", "weight_decay", "teacher_momentum", "teacher_temperature"}


def _checkpoints(run: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run / CHECKPOINTS)]


def _numbers(run: Path) -> list[dict[str, Any]]:
    """Metrics without those that measure time."""
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(run)]


def _bytes(run: Path) -> dict[str, bytes]:
    """All weights and states that a run ended with."""
    newest = list_checkpoints(run / CHECKPOINTS)[-1]
    files = [*newest.glob("*.safetensors"), *(run / "model").glob("*.safetensors")]
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in files}


def test_a_run_leaves_metrics_checkpoints_and_a_model_that_loads(tiny: Any, photos: Path, tmp_path: Path) -> None:
    heard: list[Progress] = []
    outcome = pretrain(tiny(), listener=heard.append)
    run = tmp_path / "run"
    assert (outcome.run, outcome.step, outcome.stopped_by) == (run, 6, None)
    assert [(p.step, p.total_steps) for p in heard] == [(n, 6) for n in range(1, 7)]
    metrics = read_metrics(run)
    assert [line["step"] for line in metrics] == list(range(6))
    norms = {"grad_norm_backbone", "grad_norm_dino_head", "grad_norm_ibot_head"}
    assert all(line.keys() == LOSSES | RATES | norms | TIMINGS | {"step"} for line in metrics)
    assert all(0 < line["data_wait"] < 1 for line in metrics)  # without workers the crops are made in between
    assert [line["last_layer_lr"] == 0 for line in metrics] == [True, *[False] * 5]
    assert _checkpoints(run) == ["step_00000003", "step_00000006"]
    assert not (run / LEDGER).exists()
    model = foveal.load(run / "model")
    assert model.extract(photos / "01.png").cls.shape == (1, 48)
    card = json.loads((run / "model" / "model.json").read_text())
    assert card["crop_size"] == 32
    assert card["lineage"]["steps"] == 6
    assert card["lineage"]["images"] == ImageSet.open(photos).hash
    teacher = load_file(run / CHECKPOINTS / "step_00000006" / "teacher.safetensors")
    weights = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(value, teacher[f"backbone.{name}"]) for name, value in weights.items())
    heads = load_file(run / "model" / "ssl_heads.safetensors")
    assert all(torch.equal(value, teacher[name]) for name, value in heads.items())
    assert len(weights) + len(heads) + 2 == len(teacher)  # and two centres


@pytest.mark.parametrize("centering", ["sinkhorn_knopp", "centering"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_in_pieces_equals_the_run_in_one(tiny: Any, tmp_path: Path, centering: str, num_workers: int) -> None:
    settings = [f"objective.centering={centering}", f"num_workers={num_workers}"]
    pretrain(tiny(f"objective.centering={centering}", out="whole"))
    for last in (1, 3, 4, 6):  # at, before and after checkpoints of the whole run
        before = len(read_metrics(tmp_path / "run"))
        assert pretrain(tiny(*settings), stop_after=last - before).step == last
    assert _numbers(tmp_path / "run") == _numbers(tmp_path / "whole")
    assert _bytes(tmp_path / "run") == _bytes(tmp_path / "whole")


def test_a_finished_run_stays_as_it_is(tiny: Any, tmp_path: Path) -> None:
    pretrain(tiny())
    run = tmp_path / "run"
    before, metrics = _bytes(run), _numbers(run)
    times = {path: path.stat().st_mtime_ns for path in (run / CHECKPOINTS).rglob("*")}
    (run / "model" / "model.safetensors").write_bytes(b"damaged")
    assert pretrain(tiny()).step == 6
    assert _bytes(run) == before
    assert _numbers(run) == metrics
    # not written again: being killed meanwhile must not cost the last checkpoint
    assert {path: path.stat().st_mtime_ns for path in (run / CHECKPOINTS).rglob("*")} == times


def test_going_back_from_a_damaged_checkpoint_gives_the_same_run(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain(tiny())
    run = tmp_path / "run"
    before, metrics = _bytes(run), _numbers(run)
    (run / CHECKPOINTS / "step_00000006" / MANIFEST).write_text("{")
    with caplog.at_level(logging.WARNING):
        pretrain(tiny())
    assert "step_00000006 is not used" in caplog.text
    assert _bytes(run) == before
    assert _numbers(run) == metrics


def test_no_intact_checkpoint_is_an_error(tiny: Any, tmp_path: Path) -> None:
    pretrain(tiny())
    for path in list_checkpoints(tmp_path / "run" / CHECKPOINTS):
        (path / "student.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        pretrain(tiny())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_finishes_the_step_saves_and_the_same_call_continues(
    tiny: Any, tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    outcome = pretrain(tiny(), listener=lambda p: os.kill(os.getpid(), number) if p.step == 2 else None)
    assert (outcome.step, outcome.stopped_by) == (2, number)
    assert signal.getsignal(number) is before
    assert _checkpoints(tmp_path / "run") == ["step_00000002"]
    assert pretrain(tiny()).stopped_by is None
    pretrain(tiny(out="whole"))
    assert _numbers(tmp_path / "run") == _numbers(tmp_path / "whole")
    assert _bytes(tmp_path / "run") == _bytes(tmp_path / "whole")


def test_a_change_on_purpose_counts_from_the_next_step_and_is_in_the_card(tiny: Any, tmp_path: Path) -> None:
    pretrain(tiny(), stop_after=2)
    changed = tiny("optimizer.base_lr=0.02")
    with pytest.raises(RunError, match=r"optimizer.base_lr was 0.01, is 0.02"):
        pretrain(changed)
    assert pretrain(changed, allowed_changes=["optimizer.base_lr"], stop_after=1).step == 3
    assert pretrain(changed).step == 6  # the same command without the word, for these are its settings now
    rates = [line["lr"] for line in read_metrics(tmp_path / "run")]
    pretrain(tiny(out="before"))
    pretrain(tiny("optimizer.base_lr=0.02", out="after"))
    assert rates[:2] == [line["lr"] for line in read_metrics(tmp_path / "before")][:2]
    assert rates[2:] == [line["lr"] for line in read_metrics(tmp_path / "after")][2:]
    card = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    assert card["lineage"]["changes"] == [{"step": 2, "changed": {"optimizer.base_lr": [0.01, 0.02]}}]
    noted = [(line["step"], line["changed"]) for line in read_metrics(tmp_path / "run") if "changed" in line]
    assert noted == [(2, {"optimizer.base_lr": [0.01, 0.02]})]
    with pytest.raises(RecipeError, match=r"unknown recipe key 'optimizer.lr'; did you mean"):
        pretrain(changed, allowed_changes=["optimizer.lr"])


def test_a_signal_in_the_last_step_finds_the_run_finished(tiny: Any) -> None:
    outcome = pretrain(tiny(), listener=lambda p: os.kill(os.getpid(), signal.SIGTERM) if p.step == 6 else None)
    assert (outcome.step, outcome.stopped_by) == (6, None)


def test_a_second_signal_stops_at_once(tiny: Any) -> None:
    def interrupt(_progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def twice(progress: Progress) -> None:
        interrupt(progress)
        interrupt(progress)

    with pytest.raises(KeyboardInterrupt):
        pretrain(tiny(), listener=twice)


@pytest.fixture
def trainer(tiny: Any, photos: Path) -> Iterator[Trainer]:
    recipe = tiny("objective.centering=centering", "total_steps=40")
    images = ImageSet.open(photos)
    trainer = Trainer(recipe, folder=RunFolder(recipe, images_hash=images.hash), images=images)
    trainer.resume()
    yield trainer
    trainer.folder.close()


def _step(trainer: Trainer, *, broken: bool, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Run one step; a broken one has a NaN in the crops of its second micro-batch."""
    source = MicroBatches(trainer.images, trainer.recipe)
    raw = [source[2 * trainer.step], source[2 * trainer.step + 1]]
    original = loader.to_batch

    def with_nan(micro: RawBatch, **arguments: Any) -> Any:
        batch = original(micro, **arguments)
        if broken and micro is raw[1]:
            batch.global_crops[0, 0, 3, 5] = float("nan")
        return batch

    monkeypatch.setattr(loader, "to_batch", with_nan)
    metrics = trainer.train_step(raw)
    trainer.step += 1
    return metrics


def _state(trainer: Trainer) -> dict[str, Tensor]:
    return {f"{a}.{b}": value.clone() for a, named in trainer._tensors().items() for b, value in named.items()}


def test_a_step_that_is_not_finite_changes_nothing(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        _step(trainer, broken=False, monkeypatch=monkeypatch)
    before = _state(trainer)
    assert before["teacher.centers.dino"].any()
    assert before["teacher.centers.ibot"].any()
    metrics = _step(trainer, broken=True, monkeypatch=monkeypatch)
    assert metrics["skipped"] == 1
    assert metrics["loss"] != metrics["loss"]
    assert trainer.guard.skipped == [3]
    after = _state(trainer)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert "skipped" not in _step(trainer, broken=False, monkeypatch=monkeypatch)
    after = _state(trainer)
    assert not torch.equal(after["student.backbone.norm.weight"], before["student.backbone.norm.weight"])
    assert not torch.equal(after["teacher.centers.dino"], before["teacher.centers.dino"])
    assert all(torch.isfinite(value).all() for value in after.values())  # nothing of the bad step waited


def test_skipped_steps_are_remembered_across_a_restart(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    _step(trainer, broken=True, monkeypatch=monkeypatch)  # the optimizer is still empty: that must be saved too
    trainer.save()
    trainer.checkpoints.wait()
    trainer.folder.close()
    trainer.step, trainer.guard = 0, Guard()
    trainer.resume()
    assert (trainer.step, trainer.guard.skipped) == (1, [0])


def test_scheduled_values_by_hand(tiny: Any, trainer: Trainer) -> None:
    """lr: 0, base sqrt(4 / 1024), then a cosine over 38 steps; temperature 0.04, 0.055, 0.07; momentum 0.9 to 1."""
    peak = 0.01 * (4 / 1024) ** 0.5
    assert trainer.rates(0) == pytest.approx(
        {
            "lr": 0.0,
            "backbone_lr": 0.0,
            "last_layer_lr": 0.0,
            "weight_decay": 0.04,
            "teacher_momentum": 0.9,
            "teacher_temperature": 0.04,
        }
    )
    assert trainer.rates(1) == pytest.approx(
        {
            "lr": peak,
            "backbone_lr": peak,
            "last_layer_lr": peak,
            "weight_decay": trainer.rates(1)["weight_decay"],
            "teacher_momentum": trainer.rates(1)["teacher_momentum"],
            "teacher_temperature": 0.055,
        }
    )
    middle = trainer.rates(20)
    assert middle["weight_decay"] == pytest.approx((0.04 + 0.4) / 2)
    assert middle["teacher_momentum"] == pytest.approx(0.95)
    assert trainer.rates(21)["lr"] == pytest.approx((peak + 1e-6) / 2)  # halfway from 2 to 40
    assert trainer.rates(40)["lr"] == 1e-6


def test_student_and_teacher_start_equal_and_from_the_seed(tiny: Any) -> None:
    student, teacher = build_networks(tiny())
    same, _ = build_networks(tiny())
    other, _ = build_networks(tiny("seed=1"))
    for name, value in student.state_dict().items():
        assert torch.equal(value, teacher.state_dict()[name])
        assert torch.equal(value, same.state_dict()[name])
    assert not torch.equal(student.backbone.pos_embed, other.backbone.pos_embed)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_bad_images_are_counted_and_too_many_stop_the_run(tiny: Any, photos: Path, tmp_path: Path) -> None:
    (photos / "00.jpg").write_text("not an image")
    assert pretrain(tiny()).step == 6
    entry = json.loads((tmp_path / "run" / LEDGER).read_text())
    assert (entry["uri"], entry["reason"]) == ("00.jpg", "unknown_format")
    (photos / "02.jpg").write_bytes((photos / "02.jpg").read_bytes()[:200])
    with pytest.raises(ImageSetError, match=r"2 of 11 images are bad \(.*1 truncated.*allowed are 1"):
        pretrain(tiny(out="two"))
    assert len((tmp_path / "two" / LEDGER).read_text().splitlines()) == 2
    assert pretrain(tiny("max_bad_share=0.2", out="two")).step == 6


@pytest.mark.parametrize("num_workers", [0, 1])
def test_no_usable_image_stops_with_all_reasons(tiny: Any, photos: Path, num_workers: int) -> None:
    for number, path in enumerate(sorted(photos.iterdir())):
        path.write_text("not an image") if number else path.write_bytes(b"")
    with pytest.raises(ImageSetError, match=r"2 of 11 images are bad") as caught:
        pretrain(tiny(f"num_workers={num_workers}"))
    assert "Traceback" not in str(caught.value)
    with pytest.raises(ImageSetError, match="no usable image found"):
        pretrain(tiny(f"num_workers={num_workers}", "max_bad_share=1", out="all"))


def test_a_single_image_is_enough_without_koleo(tiny: Any, photos: Path) -> None:
    for path in sorted(photos.iterdir())[1:]:
        path.unlink()
    assert pretrain(tiny("objective.koleo_weight=0", "batch_size=1", "micro_batch_size=1")).step == 6


@pytest.mark.parametrize(
    "overrides",
    [
        ["views.num_local=0"],
        ["masks.probability=0"],
        ["heads.ibot=null", "objective.centering=centering"],
        ["precision=bf16"],
        ["backbone.num_registers=2", "backbone.ffn=swiglu", "views.global_size=24"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_settings_run(tiny: Any, tmp_path: Path, overrides: list[str]) -> None:
    assert pretrain(tiny(*overrides, "total_steps=3")).step == 3
    metrics = read_metrics(tmp_path / "run")
    assert len(metrics) == 3
    assert all("skipped" not in line for line in metrics)


def test_metrics_may_be_sparser(tiny: Any, tmp_path: Path) -> None:
    pretrain(tiny("log_every_steps=4"))
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [3, 5]


@pytest.mark.parametrize(("has_bf16", "warned"), [(False, True), (True, False)])
def test_bf16_on_a_cpu_that_would_emulate_it_is_warned_of(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has_bf16: bool, warned: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16})
    pretrain(tiny("precision=bf16"), stop_after=1)
    assert ("use precision=fp32" in caplog.text) is warned


def test_unusable_device_is_named(tiny: Any) -> None:
    with pytest.raises(RecipeError, match=r"device=tpu0 cannot be used: .*; use auto, cpu or cuda"):
        pretrain(tiny("device=tpu0"))


def test_a_model_folder_that_cannot_be_replaced_is_no_loss(tiny: Any, tmp_path: Path) -> None:
    pretrain(tiny(), stop_after=1)
    (tmp_path / "run" / "model" / "model.json").unlink()  # now it could be anything
    with pytest.raises(
        RunError, match=r"is not a model folder.*checkpoint of step 2 is safe: run the same command again"
    ):
        pretrain(tiny(), stop_after=1)
    (tmp_path / "run" / "model").rename(tmp_path / "aside")
    assert pretrain(tiny()).step == 6


def test_a_full_disk_keeps_the_run_and_it_continues_later(tiny: Any, tmp_path: Path) -> None:
    pretrain(tiny(), stop_after=3)
    with no_file_above(100_000), pytest.raises(CheckpointError, match=r"it needs [\d,]+ bytes, [\d,]+ are free"):
        pretrain(tiny())
    assert _checkpoints(tmp_path / "run") == ["step_00000003"]
    assert pretrain(tiny()).step == 6
    pretrain(tiny(out="whole"))
    assert _numbers(tmp_path / "run") == _numbers(tmp_path / "whole")
    assert _bytes(tmp_path / "run") == _bytes(tmp_path / "whole")


def test_a_checkpoint_that_fails_once_costs_nothing(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ["checkpoints.every_steps=3", "checkpoints.keep=9"]
    pretrain(tiny(*settings), stop_after=1)
    (tmp_path / "run" / CHECKPOINTS / ".step_00000003.tmp").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert pretrain(tiny(*settings)).step == 6
    assert "step_00000003: " in caplog.text
    steps = [int(name.removeprefix("step_")) for name in _checkpoints(tmp_path / "run")]
    assert steps[0] == 1
    assert steps[1] in (4, 5, 6)  # as soon as it was known
    assert steps[-1] == 6
    pretrain(tiny(out="whole"))
    assert _numbers(tmp_path / "run") == _numbers(tmp_path / "whole")
    assert _bytes(tmp_path / "run") == _bytes(tmp_path / "whole")


def test_a_disk_too_full_for_the_model_keeps_the_checkpoint(trainer: Trainer) -> None:
    trainer.save()
    trainer.checkpoints.wait()
    model = trainer.folder.path / "model" / "model.safetensors"
    before = model.read_bytes()
    with no_file_above(100_000), pytest.raises(RunError, match=r"cannot write the model folder .*step 0 is safe"):
        trainer.save()
    assert model.read_bytes() == before
    assert _checkpoints(trainer.folder.path) == ["step_00000000"]
