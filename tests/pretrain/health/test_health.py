"""What the health probe measures, the signs of collapse, and the page."""

import logging
import math
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.errors import RecipeError
from foveal.features.charts import line_chart, number, thinned
from foveal.pretrain.health.collapse import Size, limit_of, warnings_of
from foveal.pretrain.health.probe import drift, entropies, sample_knn
from foveal.pretrain.loop import pretrain
from foveal.pretrain.run import read_lines

SIZE = Size(num_images=64, width=48, num_prototypes=64)
WELL = {"rank_me": 9.0, "neighbour_distance": 0.3, "target_entropy": 3.0, "mean_target_entropy": 4.0}
# Sixteen images a step; learns something in 60 steps.
RUN = [
    "total_steps=60",
    "batch_size=16",
    "micro_batch_size=16",
    "heads.dino.num_prototypes=64",
    "heads.ibot=null",
    "teacher.temperature_warmup_steps=5",
    "optimizer.warmup_steps=10",
    "checkpoints.every_steps=40",
    "backbone.drop_path_rate=0",
    "health.every_steps=20",
    "health.images=64",
]


@pytest.fixture
def sixty_four(tmp_path: Path) -> str:
    """Pictures with a colour, a direction and a grain of their own."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "sixty_four"
    folder.mkdir()
    for count in range(64):
        ramp = np.linspace(0, 1, 37)[None, :, None] * rng.uniform(50, 200, 3) + rng.uniform(0, 55, 3)
        pixels = np.clip(ramp + rng.normal(0, 10, (29, 37, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{count:02d}.png")
    return f"images={folder}"


def _measured(run: Path) -> list[dict[str, Any]]:
    return read_lines(run / "health" / "measured.jsonl")


def test_entropies_by_hand() -> None:
    targets = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])
    each, of_mean = entropies(targets)
    assert each == pytest.approx(math.log(2))
    assert of_mean == pytest.approx(0.5 * math.log(2) + 2 * 0.25 * math.log(4))


def test_drift_by_hand() -> None:
    ours, theirs = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    with torch.no_grad():
        theirs.weight[:], theirs.bias[:] = torch.tensor([3.0, 4.0]), 0
        ours.weight[:], ours.bias[:] = torch.tensor([3.0, 4.0]), 2
    assert drift(ours, theirs) == pytest.approx(2 / 5)


def test_neighbours_among_themselves() -> None:
    """Two groups of five around two directions, one of them labelled wrongly; twins do not vote for themselves."""
    features = torch.tensor([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5)
    assert sample_knn(features, [*"aaaaabbbbb"]) == {"knn_sample": 100.0}
    assert sample_knn(features, [*"aaaabbbbbb"]) == {"knn_sample": 90.0}
    assert sample_knn(features, [*"aaaabbbbcc"]) == {}  # too few a class
    assert sample_knn(features, [*"aaaaaaaaaa"]) == {}


def _warned(values: list[dict[str, float]], warmup_steps: int = 0) -> list[tuple[int, str]]:
    lines = [{"step": step} | WELL | value for step, value in enumerate(values)]
    return [(warned.step, warned.kind) for warned in warnings_of(lines, size=SIZE, warmup_steps=warmup_steps)]


def test_a_sign_is_told_once_until_it_is_over() -> None:
    low, between, well = {"rank_me": 2.9}, {"rank_me": 4.0}, {"rank_me": 5.0}
    assert limit_of("rank", SIZE) == 3
    assert _warned([well, low, well, low, well]) == []  # one alone is none
    assert _warned([low, low, low, low]) == [(1, "rank")]
    assert _warned([low, low, between, low, low]) == [(1, "rank")]  # it was not over
    assert _warned([low, low, well, low, low]) == [(1, "rank"), (4, "rank")]
    assert _warned([low, low, low, low], warmup_steps=2) == [(3, "rank")]


def test_each_kind_of_collapse_has_words_of_its_own() -> None:
    uniform = {"target_entropy": 4.1588, "mean_target_entropy": 4.1589}
    one = {"target_entropy": 0.001, "mean_target_entropy": 0.002}
    for values, words in (
        (uniform, "the same spread over prototypes"),
        (one, "Set objective.centering=sinkhorn_knopp"),
        ({"neighbour_distance": 0.01}, "Raise objective.koleo_weight"),
    ):
        (warned,) = warnings_of([{"step": s} | WELL | values for s in (0, 1)], size=SIZE, warmup_steps=0)
        assert words in warned.text
    bare = [{"step": s, "rank_me": 9.0, "neighbour_distance": 0.3} for s in (0, 1)]
    assert warnings_of(bare, size=SIZE, warmup_steps=0) == []  # a learner without prototypes


def test_a_run_that_learns_gives_no_warning(
    tiny: Any, sixty_four: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pretrain(tiny(*RUN, sixty_four))
    assert not [record for record in caplog.records if record.name == "foveal.pretrain.health.probe.monitor"]
    lines = _measured(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 20, 40, 60]
    assert lines[-1]["rank_me"] > 2 * lines[0]["rank_me"]
    assert lines[0]["drift"] == 0
    assert "No sign of collapse so far." in (tmp_path / "run" / "health.html").read_text()


@pytest.mark.parametrize(
    ("settings", "kinds"),
    [
        # no centring and no KoLeo: every image gets the same prototype
        (["objective.center_momentum=0.9999"], "the same few prototypes"),
        # no sharpening: every image gets all of them
        (["teacher.temperature_start=1.0", "teacher.temperature_end=1.0"], "the same spread over prototypes"),
    ],
)
def test_a_run_that_collapses_is_told_so(
    tiny: Any, sixty_four: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, settings: list[str], kinds: str
) -> None:
    with caplog.at_level(logging.WARNING):
        pretrain(tiny(*RUN, sixty_four, "objective.centering=centering", "objective.koleo_weight=0", *settings))
    for words in (kinds, "they collapse", "tell them no longer apart"):
        assert sum(words in record.message for record in caplog.records) == 1
    assert kinds in (tmp_path / "run" / "health.html").read_text()


def test_health_changes_nothing_of_a_run_and_continues_with_it(tiny: Any, tmp_path: Path) -> None:
    settings = ["health.every_steps=2", "health.images=5"]
    pretrain(tiny(*settings))
    pretrain(tiny("health=null", out="without"))
    for run in ("run", "without"):
        assert (tmp_path / run / "health.html").exists() == (run == "run")
    files = "model/model.safetensors"
    assert (tmp_path / "run" / files).read_bytes() == (tmp_path / "without" / files).read_bytes()
    pretrain(tiny(*settings, out="pieces"), stop_after=3)
    pretrain(tiny(*settings, out="pieces"))

    def numbers(run: str) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if k != "seconds"} for line in _measured(tmp_path / run)]

    assert numbers("pieces") == numbers("run")
    assert [line["step"] for line in numbers("run")] == [0, 2, 4, 6]
    events = read_lines(tmp_path / "pieces" / "health" / "events.jsonl")
    assert [(line["step"], line["what"]) for line in events] == [
        (0, "started"),
        (3, "stopped"),
        (3, "continued"),
        (6, "finished"),
    ]


def test_a_page_that_cannot_be_written_does_not_end_the_run(
    tiny: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pretrain(tiny("health=null"), stop_after=3)
    (tmp_path / "run" / "health").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert pretrain(tiny()).step == 6
    assert "the health page is not up to date: cannot write in" in caplog.text


def test_a_set_kept_apart_is_measured_instead(tiny: Any, photos: Path, tmp_path: Path) -> None:
    apart = tmp_path / "apart"
    for number_of in range(10):
        (apart / "ab"[number_of % 2]).mkdir(parents=True, exist_ok=True)
        colour = (200, 20, 20) if number_of % 2 else (20, 20, 200)
        Image.new("RGB", (32, 32), colour).save(apart / "ab"[number_of % 2] / f"{number_of}.png")
    pretrain(tiny(f"health.images={apart}"))
    page = (tmp_path / "run" / "health.html").read_text()
    assert "Measured on 10 images, a set kept apart" in page
    assert _measured(tmp_path / "run")[-1]["knn_sample"] == 100
    with pytest.raises(RecipeError, match=r"health\.images.*greater than 1"):
        pretrain(tiny("health.images=1", out="one"))


def test_the_page_needs_no_network_and_is_well_formed(tiny: Any, tmp_path: Path) -> None:
    pretrain(tiny("health.every_steps=3"), stop_after=4)
    running = (tmp_path / "run" / "health.html").read_text()
    pretrain(tiny("health.every_steps=3"))
    page = (tmp_path / "run" / "health.html").read_text()
    assert 'http-equiv="refresh"' not in running + page  # neither is running
    addresses: list[str] = []

    class Sources(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            addresses.extend(value or "" for name, value in attrs if name in ("src", "href"))
            assert tag not in ("script", "link")

    Sources().feed(page)
    assert len(addresses) == 4  # the images, and steps 0, 3 and 6
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    for heading in ("Features", "Losses", "Gradients and schedules", "Speed", "What happened"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count('<svg class="chart"') >= 15
    assert "cost of this page" in page


def test_a_chart_by_hand() -> None:
    """Two points from corner to corner of a plot of 356 x 152 pixels at (52, 12), with 6 % of room above and below."""
    text = line_chart({"a<b": [(0, 1.0), (10, 3.0)]}, title="T", marks=[5, 99])
    svg = ET.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    (line,) = svg.iter("polyline")
    room = 152 * 0.12 / 2.24
    assert line.get("points") == f"52.0,{164 - room:.1f} 408.0,{12 + room:.1f}"
    marks = [one for one in svg.iter("line") if one.get("class") == "mark"]
    assert [one.get("x1") for one in marks] == ["230.0"]
    assert "a&lt;b" in text


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[0.0], [1.0, 1.0], [1e-9, 1e9], [-2.0, math.nan, 3.0], [math.nan], [5e-324]])
def test_charts_of_odd_numbers_are_drawn_or_left_out(values: list[float], log: bool) -> None:
    text = line_chart({"x": list(enumerate(values))}, title="T", log=log, band=(0.1, 2.0))
    drawn = [v for v in values if math.isfinite(v) and (v > 1e-30 or not log)]
    assert bool(text) == bool(drawn)
    assert "nan" not in text
    assert "inf" not in text


def test_thinning_keeps_extremes() -> None:
    points = [(float(step), math.sin(step / 7)) for step in range(1000)]
    points[333] = (333.0, 50.0)
    kept = thinned(points, most=100)
    assert len(kept) <= 100
    assert (333.0, 50.0) in kept
    assert kept[-1] == points[-1]
    assert thinned(points[:9], most=100) == points[:9]


def test_numbers_in_words() -> None:
    assert [number(value) for value in (0, 1e-6, 1234.5, 99999.4)] == ["0", "1e-06", "1234", "99\u2009999"]
