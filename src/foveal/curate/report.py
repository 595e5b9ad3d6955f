"""The page of a curation: what every stage removed, beside what it kept it for, clusters before and after, commands.

One file that needs no network. Which images are shown is drawn with a fixed seed.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from PIL import Image

import foveal
from foveal.curate.funnel import funnel
from foveal.curate.outcome import rows_left
from foveal.curate.stage import Stage
from foveal.errors import BadImageError
from foveal.features.charts import line_chart
from foveal.features.pictures import displayed, fitted
from foveal.files import staging_of, write_atomically
from foveal.images.decode import decode
from foveal.images.shards import Reader

if TYPE_CHECKING:
    from foveal.curate.pipeline import Curation

_PAIRS = 12  # shown for a reason
_OF_CLUSTER = 8  # images shown of a cluster, before and after
_CLUSTERS = 3  # largest, smallest and drawn ones
_PAIR_SIZE, _MOSAIC_SIZE = 104, 64  # longer side of thumbnails, pixels
_SEED = 0

_WHAT = {
    "audit": "Images that cannot be used, and those that are there twice.",
    "dedup": "Copies of images that stay, and images of the sets to keep out.",
    "cluster": "Nothing is removed: clusters say what is alike.",
    "retrieve": "Images of the pool that resemble no image of the seeds, or less than others do.",
    "sample": "Images of clusters that have more than their share.",
}


@dataclass(frozen=True)
class Shown:
    """One picture: its data, None where it cannot be read, and its words."""

    url: str | None
    name: str


@dataclass(frozen=True)
class Pair:
    """An image and the one that it was removed or retrieved for, where there is one; a note such as their cosine."""

    image: Shown
    other: Shown | None
    note: str


def write_report(path: Path, summary: Mapping[str, Any], curation: "Curation") -> None:
    """Write the page.

    Args:
        path: of the page.
        summary: of the curation; see `foveal.curate.run.Curated`.
        curation: that made it.

    Raises:
        OSError: it cannot be written.
    """
    write_atomically(path, page_of(summary, curation), staging=staging_of(path))


def page_of(summary: Mapping[str, Any], curation: "Curation") -> str:
    """Return the page as HTML; see `write_report`."""
    thumbnails = Thumbnails()
    template = jinja2.Template(
        (resources.files("foveal") / "curate" / "report.html").read_text("utf-8"), autoescape=True
    )
    flow = summary["flow"]
    return template.render(
        version=foveal.__version__,
        name=curation.out.name,
        facts=_facts(summary),
        summary=summary,
        funnel=Markup(funnel(summary["num_pool"], _steps(summary))),
        sections=[_section(one, curation, thumbnails) for one in flow],
        clusters=_clusters(curation, thumbnails),
        density=Markup(_density(curation)),
        unreadable=thumbnails.num_unreadable,
    )


class Thumbnails:
    """Small pictures of images as data urls, each made once.

    Attributes:
        num_unreadable: images that could not be shown.
    """

    def __init__(self) -> None:
        """Start with none."""
        self._found: dict[tuple[Path, str, int], str | None] = {}
        self._readers: dict[Path, Reader] = {}
        self.num_unreadable = 0

    def shown(self, root: Path, uri: str, size: int = _PAIR_SIZE) -> Shown:
        """Return the picture of an image below a folder, with its longer side so many pixels."""
        key = (root, uri, size)
        if key not in self._found:
            reader = self._readers.setdefault(root, Reader(root))
            try:
                pixels = decode(reader.read(uri), min_short_side=size)
                self._found[key] = _data_url(fitted(displayed(pixels), size))
            except BadImageError:
                self._found[key] = None
                self.num_unreadable += 1
        return Shown(self._found[key], uri)


def _data_url(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    num_seeds = sum(summary["seeds"].values())
    facts = [
        ("images in the pool", f"{summary['num_pool']:,}"),
        ("in the result", f"{summary['num_images']:,}"),
        ("of the pool", f"{100 * (summary['num_images'] - summary['num_as_is']) / summary['num_pool']:.1f} %"),
    ]
    facts += [("images of seeds", f"{num_seeds:,}")] if num_seeds else []
    facts += [("images to keep out", f"{summary['num_keep_out']:,}")] if summary["num_keep_out"] else []
    return facts


def _steps(summary: Mapping[str, Any]) -> list[tuple[str, int, Mapping[str, int]]]:
    """Return the stages that may remove something, and what follows."""
    steps = [(one["stage"], one["num_kept"], one["by_reason"]) for one in summary["flow"] if one["stage"] != "cluster"]
    return steps


def _section(entry: Mapping[str, Any], curation: "Curation", thumbnails: Thumbnails) -> dict[str, Any]:
    """Return what the page says of one stage."""
    stage, sources = curation.found.stages[entry["stage"]], curation.sources
    root = sources.pool.root
    removed = stage.removed()
    reasons = removed.column("reason")
    groups = []
    for reason, count in entry["by_reason"].items():
        chosen = _drawn(np.flatnonzero(pc.equal(reasons, reason)), _PAIRS, reason)
        other, label = root, "kept"
        if entry["stage"] == "dedup" and reason != "duplicate" and sources.keep_out is not None:
            other, label = sources.keep_out[1].root, "to keep out"
        pairs = [
            Pair(
                thumbnails.shown(root, row["uri"]),
                None if row["kept_uri"] is None else thumbnails.shown(other, row["kept_uri"]),
                _note(row, with_score=entry["stage"] != "audit"),  # whose words have the distance
            )
            for row in removed.take(pa.array(chosen)).to_pylist()
        ]
        groups.append({"title": f"{count:,} removed: {reason}", "pairs": pairs, "labels": ("removed", label)})
    if entry["stage"] == "retrieve":
        groups.insert(0, _retrieved(stage, curation, thumbnails))
    return {**entry, "what": _WHAT.get(entry["stage"], ""), "groups": groups}


def _note(row: Mapping[str, Any], *, with_score: bool) -> str:
    score = f"{row['score']:.3g}" if with_score and row["score"] is not None else ""
    return ": ".join(filter(None, [score, row["detail"]]))


def _retrieved(stage: Stage, curation: "Curation", thumbnails: Thumbnails) -> dict[str, Any]:
    rows = stage.images().rows
    chosen = _drawn(np.arange(len(rows)), _PAIRS, "retrieved")
    pairs = [
        Pair(
            thumbnails.shown(curation.sources.pool.root, row["uri"]),
            thumbnails.shown(curation.sources.seeds[row["query_set"]][1].root, row["query"]),
            f"{row['score']:.3f}",
        )
        for row in rows.take(pa.array(chosen)).to_pylist()
    ]
    return {"title": f"{len(rows):,} retrieved", "pairs": pairs, "labels": ("retrieved", "query")}


def _clusters(curation: "Curation", thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """Return the largest, the smallest and some other clusters of the coarsest level, before and after."""
    if (clusters := _members(curation)) is None:
        return []
    members, kept, uris = clusters
    numbers, sizes = np.unique(members, return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    picked = {
        "largest": order[:_CLUSTERS],
        "drawn at random": _drawn(order[_CLUSTERS:-_CLUSTERS], _CLUSTERS, "clusters"),
        "smallest": order[_CLUSTERS:][-_CLUSTERS:],
    }
    root = curation.sources.pool.root

    def mosaic(rows: np.ndarray) -> list[Shown]:
        chosen = _drawn(rows, _OF_CLUSTER, "mosaic")
        return [thumbnails.shown(root, uri, _MOSAIC_SIZE) for uri in uris.take(pa.array(chosen)).to_pylist()]

    found = []
    for what, places in picked.items():
        for number in numbers[places]:
            before = np.flatnonzero(members == number)
            after = before[kept[before]]
            parts = [{"count": len(rows), "images": mosaic(rows)} for rows in (before, after)]
            found.append({"what": what, "before": parts[0], "after": parts[1]})
    return found


def _density(curation: "Curation") -> str:
    """Return the chart of the sizes of clusters, sorted, before and after."""
    if (clusters := _members(curation)) is None:
        return ""
    members, kept, _ = clusters
    lines = {}
    for label, some in (("before", members), ("after", members[kept])):
        sizes = np.sort(np.unique(some, return_counts=True)[1])[::-1]
        lines[label] = [(float(rank), float(size)) for rank, size in enumerate(sizes, 1)]
    return line_chart(lines, title="Images in a cluster", unit="clusters by size, largest first", log=True)


def _members(curation: "Curation") -> tuple[np.ndarray, np.ndarray, pa.ChunkedArray] | None:
    """Return of the images that were clustered the coarsest cluster, whether each is in the result, and the uris."""
    if "cluster" not in curation.found.stages:
        return None
    table = curation.found.stages["cluster"].images().rows
    levels = [name for name in table.column_names if name.startswith("cluster.")]
    name = max(levels, key=lambda level: int(level.rpartition(".")[2]))
    kept = np.zeros(len(table), bool)
    kept[rows_left(curation.found)] = True
    return table.column(name).to_numpy(), kept, table.column("uri")


def _drawn(rows: np.ndarray, most: int, what: str) -> np.ndarray:
    """Return at most so many of the rows, ascending, the same each time."""
    if len(rows) <= most:
        return rows
    generator = np.random.default_rng([_SEED, *what.encode()])
    return np.sort(generator.choice(rows, most, replace=False))
