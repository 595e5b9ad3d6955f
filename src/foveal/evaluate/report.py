"""Rows of results in a folder: the history as JSONL, the newest numbers as CSV and as a page that needs no network."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

import foveal
from foveal.errors import FovealError
from foveal.evaluate.confusion import MAX_SHOWN, Confusion, read_confusions
from foveal.evaluate.published import published_value
from foveal.evaluate.results import Measure, shown, shown_interval
from foveal.files import in_turn, write_atomically

JSONL, CSV, PAGE = "results.jsonl", "results.csv", "results.html"


@dataclass(frozen=True)
class Row:
    """One measured number, and what it is a number of.

    Attributes:
        protocol: name of the protocol.
        data: name of the data.
        metric: see `Measure`, as are value, unit, low and high.
        model: name of the model.
        model_hash: of its weights and configuration.
        data_hash: of the image sets.
        command: that measured it.
        published: the authors' figure for this model, data, protocol and metric; None where there is none.
    """

    protocol: str
    data: str
    metric: str
    value: float
    unit: str
    low: float
    high: float
    model: str
    model_hash: str
    data_hash: str
    command: str
    published: float | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What a later measurement takes the place of: same protocol, data, metric and model."""
        return self.protocol, self.data_hash, self.metric, self.model_hash


def rows_of(
    measures: Sequence[Measure],
    *,
    protocol: str,
    data: str,
    data_hash: str,
    model: str,
    model_hash: str,
    command: str,
) -> list[Row]:
    """Return measures as rows, with the published figures that belong beside them."""
    return [
        Row(
            protocol,
            data,
            *measure,
            model=model,
            model_hash=model_hash,
            data_hash=data_hash,
            command=command,
            published=published_value(model=model, data=data, protocol=protocol, metric=measure.metric),
        )
        for measure in measures
    ]


def check_out(out: Path) -> None:
    """Raise FovealError when results cannot be kept in `out`, before any long work is done for them."""
    if out.exists() and not out.is_dir():
        raise FovealError(f"{out} is a file; give a folder for the results")
    read_rows(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FovealError(f"{out} cannot be made ({error.strerror}); choose another folder") from error


def add_rows(out: Path, rows: Sequence[Row]) -> Path:
    """Append rows to the history in a folder and renew the table and the page; of several processes one at a time.

    Args:
        out: folder; made where it is missing.
        rows: new ones. Earlier rows of the same key stay in the history; table and page show the newest.

    Returns:
        The page.

    Raises:
        FovealError: the history is damaged, or the folder cannot be written.
    """
    check_out(out)
    try:
        with in_turn(out):
            history = [*read_rows(out), *rows]
            newest = newest_rows(history)
            write_atomically(out / JSONL, "".join(json.dumps(asdict(row)) + "\n" for row in history))
            write_atomically(out / CSV, csv_of(newest))
            write_atomically(out / PAGE, page_of(newest, read_confusions(out)))
    except OSError as error:
        raise FovealError(f"{out} cannot be written ({error}); free space or choose another folder") from error
    return out / PAGE


def read_rows(out: Path) -> list[Row]:
    """Return the history of a folder, oldest first; FovealError where a line is no row."""
    path = out / JSONL
    rows = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            rows.append(Row(**json.loads(line)))
    except (OSError, ValueError, TypeError) as error:
        raise FovealError(
            f"{path}, line {len(rows) + 1}, is no row of results ({error}); repair it or choose another folder"
        ) from error
    return rows


def newest_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the last row of each key, in the order in which the keys first came."""
    return list({row.key: row for row in rows}.values())


def csv_of(rows: Sequence[Row]) -> str:
    """Return rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def page_of(rows: Sequence[Row], confusions: Sequence[Confusion] = ()) -> str:
    """Return rows as one HTML page: a table for each protocol and data, models beside each other; then matrices."""
    tables: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        tables.setdefault((row.protocol, row.data, row.data_hash), []).append(row)
    return table_page(
        "evaluate/results.html",
        tables=[_table(found) for found in tables.values()],
        confusions=confusions,
        max_shown=MAX_SHOWN,
    )


def table_page(template: str, **values: object) -> str:
    """Return a page of tables from a template of the package, in the style that all of them have."""
    files = resources.files("foveal")
    page = jinja2.Template((files / template).read_text(encoding="utf-8"), autoescape=True)
    style = Markup((files / "evaluate" / "tables.css").read_text(encoding="utf-8"))
    return page.render(version=foveal.__version__, style=style, **values)


def _table(rows: Sequence[Row]) -> dict[str, object]:
    """Return what the page needs of the rows of one protocol and data."""
    models = {row.model_hash: row.model for row in rows}
    cells = {(row.metric, row.model_hash): row for row in rows}
    metrics = list(dict.fromkeys(row.metric for row in rows))
    return {
        "protocol": rows[0].protocol,
        "data": rows[0].data,
        "data_hash": rows[0].data_hash,
        "models": models,
        "lines": [(metric, [_cell(cells.get((metric, model))) for model in models]) for metric in metrics],
        "commands": list(dict.fromkeys(row.command for row in rows)),
        "has_published": any(row.published is not None for row in rows),
    }


def _cell(row: Row | None) -> dict[str, str]:
    """Return the words of one number; none where a model has none."""
    if row is None:
        return {}
    unit = "" if row.unit == "points" else f" {row.unit}"
    interval = shown_interval(row.low, row.high, row.unit)
    published = "" if row.published is None else f"published {shown(row.published, row.unit)}"
    return {"value": shown(row.value, row.unit) + unit, "interval": interval, "published": published}
