"""TensorBoard always; wandb and MLflow for real where they are installed; a clear word where they are not."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from foveal.errors import RecipeError
from foveal.pretrain.loggers import Loggers
from foveal.pretrain.loop import pretrain
from foveal.pretrain.run import read_metrics


class Kept:
    errors = (OSError,)

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []
        self.broken = False

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self.broken:
            raise OSError("no route to host")
        self.seen.append((step, dict(numbers)))

    def close(self) -> None:
        self.seen.append((-1, {}))


def test_a_logger_that_fails_is_left_out_and_the_others_go_on(caplog: pytest.LogCaptureFixture) -> None:
    first, second = Kept(), Kept()
    loggers = Loggers({"first": first, "second": second})
    loggers.log(0, {"loss": 1.5, "ibot": float("nan"), "word": "x"})
    first.broken = True
    loggers.log(1, {"loss": 2})
    loggers.log(2, {"loss": 3})
    loggers.close()
    assert first.seen == [(0, {"loss": 1.5})]
    assert second.seen == [(0, {"loss": 1.5}), (1, {"loss": 2.0}), (2, {"loss": 3.0}), (-1, {})]
    assert caplog.text.count("first does not work and is left out: no route to host") == 1


def _events(run: Path) -> dict[str, dict[int, float]]:
    """Scalars of the event files by name and step, later files over earlier ones, without TensorBoard's own reader."""
    proto = pytest.importorskip("tensorboardX.proto.event_pb2")
    found: dict[str, dict[int, float]] = {}
    for path in sorted((run / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")  # then a checksum; after the record another one
            event = proto.Event.FromString(data[at + 12 : at + 12 + length])
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
            at += 16 + length
    return found


def test_tensorboard_has_the_numbers_of_the_metrics(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboardX")
    monkeypatch.setattr(time, "time", lambda: 1.8e9)  # both calls begin within one second
    pretrain(tiny("health.every_steps=3"), stop_after=4)
    pretrain(tiny("health.every_steps=3"))
    found = _events(tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    for name in ("loss", "lr", "grad_norm_backbone", "data_wait"):
        assert found[name] == pytest.approx({line["step"]: line[name] for line in lines}, rel=1e-6)
    assert list(found["health/rank_me"]) == [0, 3, 6]


def test_a_package_that_is_missing_is_named_before_the_first_step(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, package in (("wandb", "wandb"), ("mlflow", "mlflow-skinny")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(RecipeError, match=rf"loggers=\[{name}\] needs .*; pip install {package}"):
            pretrain(tiny(f"loggers=[{name}]", out=name))
        assert read_metrics(tmp_path / name) == []
    with pytest.raises(RecipeError, match=r"loggers.*'wandb' or 'mlflow'"):
        tiny("loggers=[csv]")


def test_wandb_and_mlflow_are_not_imported_unless_named() -> None:
    code = "import sys, foveal.pretrain.loop; sys.exit(any(name in sys.modules for name in ('wandb', 'mlflow')))"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, timeout=120).returncode == 0


@pytest.mark.full
@pytest.mark.filterwarnings("default")
def test_mlflow_keeps_one_run_with_every_number(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    pretrain(tiny("loggers=[mlflow]"), stop_after=4)
    pretrain(tiny("loggers=[mlflow]"))
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("foveal")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.base_lr"] == "0.01"
    history = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")}
    assert history == {line["step"]: line["loss"] for line in read_metrics(tmp_path / "run")}


@pytest.mark.full
@pytest.mark.filterwarnings("default")
def test_wandb_offline_writes_its_files(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    pretrain(tiny("loggers=[wandb]"))
    (written,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"grad_norm_backbone" in written.read_bytes()
