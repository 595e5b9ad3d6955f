"""Confusion matrices beside the results: a CSV each, with the names of the classes, and a table on the page."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foveal.errors import FovealError
from foveal.files import write_atomically

FOLDER = "confusion"
MAX_SHOWN = 40  # classes in a table on the page; of more there is the CSV alone


@dataclass(frozen=True)
class Confusion:
    """Pixels (K, K) int64 of each true class (rows) that were given each class (columns).

    Attributes:
        title: what was measured on what; also names the file.
        classes: K names.
        counts: the matrix.
    """

    title: str
    classes: Sequence[str]
    counts: np.ndarray

    @property
    def file(self) -> str:
        """Name of its file."""
        return re.sub(r"[^\w.]+", "-", self.title).strip("-") + ".csv"

    @property
    def lines(self) -> list[tuple[str, list[tuple[str, float]]]]:
        """For each true class that occurs: its name, and the share in percent as text and in 0..1 of every class."""
        totals = self.counts.sum(axis=1)
        return [
            (name, [(f"{100 * share:.1f}" if share else "", float(share)) for share in self.counts[row] / totals[row]])
            for row, name in enumerate(self.classes)
            if totals[row]
        ]


def write_confusion(out: Path, confusion: Confusion) -> Path:
    """Write a matrix into a folder of results, in place of an earlier one of the same title; return its file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([confusion.title, *confusion.classes])
    writer.writerows([name, *row] for name, row in zip(confusion.classes, confusion.counts.tolist(), strict=True))
    path = out / FOLDER / confusion.file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.getvalue())
    except OSError as error:
        raise FovealError(f"{path} cannot be written ({error}); free space or choose another folder") from error
    return path


def read_confusions(out: Path) -> list[Confusion]:
    """Return the matrices in a folder of results, in the order of their names; FovealError for a file that is none."""
    found = []
    for path in sorted((out / FOLDER).glob("*.csv")):
        try:
            header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8")))
            counts = np.array([row[1:] for row in rows], dtype=np.int64)
            if counts.shape != (len(header) - 1,) * 2:
                raise ValueError(f"{counts.shape} numbers for {len(header) - 1} classes")
        except (OSError, ValueError) as error:
            raise FovealError(f"{path} is no confusion matrix ({error}); remove it") from error
        found.append(Confusion(header[0], header[1:], counts))
    return found
