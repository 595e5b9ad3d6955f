"""Several models on one task: quality by each protocol beside speed and size, as a table and a page with plots."""

import base64
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from foveal.backbone.parameters import backbone_parameters
from foveal.errors import FovealError
from foveal.evaluate.knn import run as run_knn
from foveal.evaluate.layouts.classification import Classification
from foveal.evaluate.linear_cached import run as run_linear_cached
from foveal.evaluate.logistic import run as run_logistic
from foveal.evaluate.report import add_rows, rows_of, table_page
from foveal.evaluate.results import Measure, shown
from foveal.features.extract import Model
from foveal.files import write_atomically
from foveal.pretrain.planning.cost import forward_flops

PROTOCOLS: dict[str, Callable[..., list[Measure]]] = {
    "knn": partial(run_knn, ks=[20]),
    "logistic": run_logistic,
    "linear-cached": run_linear_cached,
}
DEFAULT = ("knn", "logistic")
PAGE = "compare.html"
_WIDE = 5  # a greater ratio of speeds or sizes is drawn on a logarithmic axis

Listener = Callable[[str, str, int, int], None]


@dataclass(frozen=True)
class Compared:
    """What was found of one model.

    Attributes:
        name: as the user gave it.
        model: the opened model.
        measures: by protocol.
        images_per_s: from files to features on this computer, decoding included.
        million_parameters: of the backbone.
        gflop: operations of one image at the model's own size, in 10^9; a multiply-add counts as two.
    """

    name: str
    model: Model
    measures: dict[str, list[Measure]]
    images_per_s: float
    million_parameters: float
    gflop: float

    @property
    def hours_per_million(self) -> float:
        """Hours that a million images would take on this computer."""
        return 1e6 / self.images_per_s / 3600


def compare(
    models: Sequence[tuple[str, Model]],
    data: Classification,
    *,
    protocols: Sequence[str] = DEFAULT,
    seed: int = 0,
    batch_size: int = 32,
    listener: Listener | None = None,
) -> list[Compared]:
    """Measure every model by every protocol.

    Args:
        models: names and opened models.
        data: labelled images.
        protocols: of `PROTOCOLS`.
        seed: of draws and intervals.
        batch_size: images at a time.
        listener: called with (model, protocol, images done, images in all).

    Raises:
        FovealError: fewer than two models, one of them twice, or an unknown protocol.
    """
    check(models=[name for name, _ in models], protocols=protocols)
    found = []
    for name, model in models:
        measures: dict[str, list[Measure]] = {}
        rate = _Rate()
        for protocol in protocols:

            def progress(done: int, total: int, protocol: str = protocol, name: str = name, rate: _Rate = rate) -> None:
                rate.note(done)
                if listener:
                    listener(name, protocol, done, total)

            run = PROTOCOLS[protocol]
            measures[protocol] = run(model, data.train, data.test, seed=seed, batch_size=batch_size, progress=progress)
        config = model.card.backbone
        found.append(
            Compared(
                name,
                model,
                measures,
                rate.images_per_s,
                backbone_parameters(config) / 1e6,
                forward_flops(config, model.card.crop_size) / 1e9,
            )
        )
    return found


def check(*, models: Sequence[str], protocols: Sequence[str]) -> None:
    """Raise FovealError for a choice that `compare` cannot carry out, before a model is opened."""
    if len(models) < 2:
        raise FovealError("one model cannot be compared; give two or more")
    if repeated := [name for name in models if models.count(name) > 1]:
        raise FovealError(f"{repeated[0]} is given twice; give every model once")
    if unknown := [name for name in protocols if name not in PROTOCOLS]:
        raise FovealError(f"protocol {unknown[0]!r} cannot be compared; choose of {', '.join(PROTOCOLS)}")


def write_comparison(out: Path, compared: Sequence[Compared], data: Classification, *, command: str) -> Path:
    """Add the numbers to the results in a folder and write the page of the comparison; return the page."""
    for one in compared:
        for protocol, measures in one.measures.items():
            rows = rows_of(
                measures,
                protocol=protocol,
                data=data.name,
                data_hash=data.hash,
                model=one.model.card.name,
                model_hash=one.model.identity,
                command=command,
            )
            add_rows(out, rows)
    write_atomically(out / PAGE, _page(compared, data, command=command))
    return out / PAGE


def table(compared: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """Return the header and one row a model: what of each protocol is the same measure for all, then speed and size."""
    columns = _columns(compared)
    header = ["model", *(_title(*column) for column in columns)]
    header += ["images/s", "hours a million", "M parameters", "GFLOP an image"]
    names = short_names([one.name for one in compared])
    rows = []
    for one in compared:
        cells = [_cell(_measure(one, *column)) for column in columns]
        cost = [f"{one.images_per_s:.1f}", f"{one.hours_per_million:.1f}"]
        rows.append([names[one.name], *cells, *cost, f"{one.million_parameters:.1f}", f"{one.gflop:.2f}"])
    return header, rows


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return what paths share left out, from the front and from the back.

    Example:
        >>> short_names(["runs/a/model", "runs/b/model"])
        {'runs/a/model': 'a', 'runs/b/model': 'b'}
    """
    parts = [name.split("/") for name in names]
    shortest = min(map(len, parts)) - 1
    front = next((i for i in range(shortest) if len({part[i] for part in parts}) > 1), shortest)
    back = next((i for i in range(shortest - front) if len({part[-1 - i] for part in parts}) > 1), shortest - front)
    return {name: "/".join(part[front : len(part) - back]) for name, part in zip(names, parts, strict=True)}


class _Rate:
    """Images a second between the first batch that was reported of a set and its last, over all sets."""

    def __init__(self) -> None:
        self._images, self._seconds = 0, 0.0
        self._before: tuple[int, float] | None = None

    def note(self, done: int) -> None:
        now = time.perf_counter()
        if self._before is not None and done > self._before[0]:
            self._images += done - self._before[0]
            self._seconds += now - self._before[1]
        self._before = done, now

    @property
    def images_per_s(self) -> float:
        return self._images / self._seconds if self._seconds else float("nan")


def _columns(compared: Sequence[Compared]) -> list[tuple[str, str]]:
    """Return (protocol, metric) of what the table shows: the first measure of each protocol. The rows have them all."""
    return [(protocol, measures[0].metric) for protocol, measures in compared[0].measures.items()]


def _title(protocol: str, metric: str) -> str:
    return metric if protocol in metric else f"{protocol} {metric}"


def _measure(one: Compared, protocol: str, metric: str) -> Measure:
    return next(measure for measure in one.measures[protocol] if measure.metric == metric)


def _cell(measure: Measure) -> str:
    half = (measure.high - measure.low) / 2
    return f"{shown(measure.value, measure.unit)} ± {shown(half, measure.unit)}"


def _page(compared: Sequence[Compared], data: Classification, *, command: str) -> str:
    header, rows = table(compared)
    return table_page(
        "studies/compare.html",
        data=data.name,
        sizes=data.sizes,
        header=header,
        rows=rows,
        plot=base64.b64encode(_plot(compared)).decode(),
        engines=[(one.name, one.model.engine.description) for one in compared],
        threads=torch.get_num_threads(),
        command=command,
    )


def _plot(compared: Sequence[Compared]) -> bytes:
    """Draw every measure with its interval against images/s and against parameters; PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    columns, names = _columns(compared), short_names([one.name for one in compared])
    figure = Figure(figsize=(9.5, 3.0 * len(columns)), layout="constrained", dpi=110)
    axes = figure.subplots(len(columns), 2, squeeze=False, sharey="row")
    for (protocol, metric), (by_speed, by_size) in zip(columns, axes, strict=True):
        by_speed.set_ylabel(f"{_title(protocol, metric)}, %")
        for panel, label, where in (
            (by_speed, "images/s", [one.images_per_s for one in compared]),
            (by_size, "million parameters", [one.million_parameters for one in compared]),
        ):
            wide = max(where) > _WIDE * min(where)
            panel.set(xscale="log" if wide else "linear", xlabel=label)
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if wide else MaxNLocator(5))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_locator(NullLocator())
            panel.margins(x=0.25, y=0.2)
            panel.grid(alpha=0.3)
            for x, one in zip(where, compared, strict=True):
                measure = _measure(one, protocol, metric)
                below, above = measure.value - measure.low, measure.high - measure.value
                panel.errorbar(x, measure.value, [[max(below, 0)], [max(above, 0)]], fmt="o", capsize=3)
                right = x > (min(where) + max(where)) / 2  # a name stays inside where it reads towards the middle
                panel.annotate(
                    names[one.name],
                    (x, measure.value),
                    textcoords="offset points",
                    xytext=(-7 if right else 7, 5),
                    ha="right" if right else "left",
                    fontsize=8,
                )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
