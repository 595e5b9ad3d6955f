"""What a run will take, before it is started."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from foveal.errors import RecipeError
from foveal.pretrain.planning.cost import checkpoint_bytes, memory_bytes
from foveal.pretrain.planning.preflight import Preflight, preflight


@pytest.fixture
def report(tiny: Any) -> Preflight:
    return preflight(tiny("total_steps=1800", "teacher.temperature_warmup_steps=3"))


def test_the_report_is_measured_and_the_run_folder_is_not_touched(report: Preflight, tmp_path: Path) -> None:
    assert not (tmp_path / "run").exists()
    assert report.num_images == 11
    assert report.memory == memory_bytes(report.recipe)
    assert report.checkpoint_bytes == checkpoint_bytes(report.recipe)
    assert report.disk_needed == 4 * report.checkpoint_bytes  # two are kept, one of an interruption, one is written
    assert report.peak_bytes
    assert report.peak_bytes > sum(report.memory.values()) / 2
    assert report.step_s
    assert report.load_s
    assert report.hours == pytest.approx(1800 * (report.step_s + report.load_s) / 3600)
    assert report.problems == []
    rows = dict(report.rows())
    assert rows.keys() == {"images", "network", "memory", "checkpoints", "step", "data", "time"}
    assert rows["images"] == "11, seen 654.5 times in 1,800 steps of 4"


def test_it_says_what_limits_the_run(report: Preflight) -> None:
    alone = replace(report, step_s=2.0, load_s=1.0)
    assert "loading adds 50% to every step; use num_workers=1" in dict(alone.rows())["data"]
    assert alone.hours == pytest.approx(1800 * 3 / 3600)
    workers = alone.recipe.model_copy(update={"num_workers": 2})
    waiting, busy = (replace(alone, recipe=workers, load_s=seconds) for seconds in (8.0, 0.5))
    assert "loader-bound, training waits 75% of the time" in dict(waiting.rows())["data"]
    assert waiting.hours == pytest.approx(1800 * 8 / 3600)
    assert "compute-bound, the loader could feed 4.0 times as much" in dict(busy.rows())["data"]


def test_a_run_that_does_not_fit_is_not_measured_and_says_what_is_missing(tiny: Any) -> None:
    recipe = tiny("backbone.variant=vitg", "backbone.depth=400", "backbone.num_heads=24", "backbone.patch_size=8")
    report = preflight(recipe)
    assert report.step_s is None
    assert report.hours is None
    assert "GB of memory and" in report.problems[0]
    assert "2 checkpoints, one of an interruption and the one being written take" in report.problems[1]
    assert "time" not in dict(report.rows())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=12", r"batch_size=12 and .* holds 11 images: .* use batch_size=11 or less"),
        (
            "views.global_size=40",
            r"views.global_size=40 is larger than the images, which are at most 37 pixels long; use 32",
        ),
    ],
)
def test_what_can_be_known_before_the_first_step_is_said_then(tiny: Any, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        preflight(tiny(override))


def test_enlarging_is_allowed_where_it_is_asked_for(tiny: Any) -> None:
    assert preflight(tiny("views.global_size=40", "views.enlarge=true")).step_s
