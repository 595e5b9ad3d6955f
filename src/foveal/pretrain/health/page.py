"""The health page: from the numbers of a run to one HTML file that needs no network."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

import foveal
from foveal.features.charts import Point, line_chart, number
from foveal.pretrain.health.collapse import Size, Warned, information, limit_of
from foveal.pretrain.recipe import Recipe

_MOST_PICTURES = 6
_MOST_ROWS = 12  # of the table of events

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Page:
    """Everything on the page.

    Attributes:
        name: of the run.
        recipe: of the run.
        metrics: lines of `metrics.jsonl`.
        measured: lines of the health probe.
        events: when the run was started, continued and stopped.
        warnings: signs of collapse.
        size: see `foveal.pretrain.health.probe.collapse.Size`.
        kept_apart: whether the probe's images are a set of its own, or trained on.
        photographs: file with some of the images.
        pictures: step -> file with their patches.
        running: whether the page asks the browser to load it again.
    """

    name: str
    recipe: Recipe
    metrics: Sequence[Line]
    measured: Sequence[Line]
    events: Sequence[Line]
    warnings: Sequence[Warned]
    size: Size
    kept_apart: bool
    photographs: Path
    pictures: Mapping[int, Path]
    running: bool


def draw_page(page: Page) -> str:
    """Return the page as HTML."""
    steps = [line for line in page.metrics if "loss" in line]
    template = jinja2.Template(
        (resources.files("foveal") / "pretrain" / "health" / "page.html").read_text(encoding="utf-8"), autoescape=True
    )
    return template.render(
        version=foveal.__version__,
        page=page,
        step=max([line["step"] + 1 for line in steps], default=0),
        facts=_facts(page, steps),
        sections=_sections(page, steps),
        photographs=_data_url(page.photographs) if page.pictures else "",
        pictures=_pictures(page.pictures),
        happened=_happened(page, steps),
        skipped=sum("skipped" in line for line in steps),
    )


def _facts(page: Page, steps: Sequence[Line]) -> list[tuple[str, str]]:
    """Name and value of what stands at the top."""
    facts = []
    knn = [line["knn"] for line in page.metrics if line.get("knn") is not None]
    if knn:
        facts.append(("kNN", f"{knn[-1]:.1f} %"))
    if page.measured:
        last = page.measured[-1]
        if last.get("knn_sample") is not None:
            facts.append(("kNN among themselves", f"{last['knn_sample']:.1f} %"))
        facts.append(("effective rank", number(last["rank_me"])))
    if steps:
        recent = steps[-50:]
        speed = len(recent) / sum(1 / line["images_per_s"] for line in recent)
        facts.append(("images/s", number(speed)))
        facts.append(("waiting for data", f"{_mean(line['data_wait'] for line in recent):.0%}"))
        left = (page.recipe.total_steps - steps[-1]["step"] - 1) * page.recipe.batch_size / speed
        facts.append(("left", _duration(left)))
        spent = page.recipe.batch_size * sum(1 / line["images_per_s"] for line in steps)
        spent *= (steps[-1]["step"] + 1) / len(steps)  # where not every step is written down
        cost = sum(line["seconds"] for line in page.measured)
        facts.append(("cost of this page", f"{100 * cost / (spent + cost):.1f} %"))
    return facts


def _sections(page: Page, steps: Sequence[Line]) -> list[tuple[str, str, list[str]]]:
    """Heading, note and charts of each section; charts without a point are left out."""
    recipe, size = page.recipe, page.size
    marks = [line["step"] for line in page.events if line["what"] == "continued"]

    def chart(names: Mapping[str, str], lines: Sequence[Line] = steps, **options: Any) -> str:
        series = {label: _points(lines, name) for name, label in names.items()}
        return line_chart(series, marks=marks, **options)

    most = math.log(size.num_prototypes)
    told = [{"step": n["step"], "information": information(n)} for n in page.measured if "target_entropy" in n]
    ceiling = float(min(size.num_images, size.width))
    norms = {name: name.removeprefix("grad_norm_") for name in (steps[-1] if steps else {}) if "grad_norm_" in name}
    which = "a set kept apart" if page.kept_apart else "a fixed sample of those trained on"
    features = [
        line_chart(
            {"labelled set": _points(page.metrics, "knn"), "among themselves": _points(page.measured, "knn_sample")},
            title="kNN accuracy",
            unit="%",
            marks=marks,
        ),
        chart(
            {"rank_me": "RankMe"},
            page.measured,
            title="Effective rank",
            unit=f"at most {ceiling:.0f}",
            band=(limit_of("rank", size), ceiling),
        ),
        chart(
            {"information": "information"},
            told,
            title="What a target says about its image",
            unit=f"nats, at most {math.log(min(size[0], size[2])):.1f}",
            log=True,
            band=(limit_of("targets", size), math.log(min(size[0], size[2]))),
        ),
        chart(
            {"mean_target_entropy": "of the mean target", "target_entropy": "mean of the targets"},
            page.measured,
            title="Entropy of the teacher's targets",
            unit=f"nats, at most {most:.1f}",
        ),
        chart(
            {"neighbour_distance": "distance"},
            page.measured,
            title="Distance to the nearest neighbour",
            unit="0 to 2",
            band=(limit_of("neighbours", size), 2.0),
        ),
        chart({"drift": "distance"}, page.measured, title="Teacher to student", unit="of the weights' length"),
    ]
    losses = [chart({"loss": "loss"}, title="Loss")] + [
        chart({name: label}, title=label)
        for name, label in (
            ("dino_local", "DINO, local crops"),
            ("dino_global", "DINO, global crops"),
            ("ibot", "iBOT, masked patches"),
            ("koleo", "KoLeo"),
            ("gram", "Gram"),
        )
    ]
    return [
        (heading, note, kept)
        for heading, note, charts in (
            (
                "Features",
                f"Measured on {size.num_images} images, {which}, with the teacher. Shaded is what is not collapsed.",
                features,
            ),
            (
                "Losses",
                "Each part before its weight. A falling loss alone says little: collapsed networks have it too.",
                losses,
            ),
            (
                "Gradients and schedules",
                f"Gradient norms are those before clipping, at {number(recipe.optimizer.clip)} for each module.",
                [
                    chart(norms, title="Gradient norm", log=True),
                    chart({"lr": "backbone", "last_layer_lr": "prototypes"}, title="Learning rate"),
                    chart({"teacher_temperature": "teacher"}, title="Temperature"),
                    chart({"teacher_momentum": "teacher"}, title="Momentum of the average"),
                    chart({"weight_decay": "weight decay"}, title="Weight decay"),
                ],
            ),
            (
                "Speed",
                "Steps that wait for data want more num_workers or smaller files; those that do not, a faster device.",
                [
                    chart({"images_per_s": "images/s"}, title="Images a second"),
                    line_chart(
                        {"waiting": [(x, 100 * y) for x, y in _points(steps, "data_wait")]},
                        title="Time waiting for data",
                        unit="% of a step",
                        marks=marks,
                    ),
                ],
            ),
        )
        if (kept := [one for one in charts if one])
    ]


def _points(lines: Sequence[Line], name: str) -> list[Point]:
    return [(max(line["step"], 0), line[name]) for line in lines if line.get(name) is not None]


def _pictures(pictures: Mapping[int, Path]) -> list[tuple[int, str]]:
    """Steps, evenly chosen with the first and the last, and the pictures as data."""
    steps = sorted(pictures)
    last = len(steps) - 1
    chosen = {steps[round(n * last / (_MOST_PICTURES - 1))] for n in range(_MOST_PICTURES)} if steps else set()
    return [(step, _data_url(pictures[step])) for step in sorted(chosen)]


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _happened(page: Page, steps: Sequence[Line]) -> list[tuple[int, str, str]]:
    """Step, time and words of what happened, the newest first."""
    rows = [(line["step"], line["time"].replace("T", " ").removesuffix("+00:00"), line["what"]) for line in page.events]
    for line in steps:
        if "went_back_to" in line:
            rows.append(
                (line["step"], "", f"not finite again: went back to the checkpoint of step {line['went_back_to']}")
            )
        elif "skipped" in line:
            rows.append((line["step"], "", "not finite, skipped"))
    return sorted(rows, key=lambda row: -row[0])[:_MOST_ROWS]


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)


def _duration(seconds: float) -> str:
    """Return a span of time in its two largest units.

    Example:
        >>> _duration(59), _duration(3700), _duration(200000)
        ('59 s', '1 h 1 min', '2 d 7 h')
    """
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts, left = list[str](), round(seconds)
    for name, length in units:
        if left >= length or (name == "s" and not parts):
            parts.append(f"{left // length} {name}")
            left %= length
    return " ".join(parts[:2])
