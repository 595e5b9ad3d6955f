"""Revisited Oxford and Paris as distributed: jpg/ beside gnd_roxford5k.pkl or gnd_rparis6k.pkl."""

import json
from pathlib import Path

import numpy as np

from foveal.backbone.plain_pickle import read_plain_pickle
from foveal.errors import FovealError
from foveal.evaluate.retrieval import Revisited, Truth
from foveal.images.imageset import ImageSet

_PARTS = ("gnd", "imlist", "qimlist")
# Name, queries and database images of the public sets, by the ground-truth file.
_PUBLIC = {
    "gnd_roxford5k": ("revisited Oxford", 70, 4993),
    "gnd_rparis6k": ("revisited Paris", 70, 6322),
}
_LEVELS = ("easy", "hard", "junk")


def is_revisited(folder: str | Path) -> bool:
    """Say whether a folder holds a ground-truth file of the protocol."""
    return bool(_truth_files(Path(folder)))


def open_revisited(folder: str | Path) -> Revisited:
    """Open a data set of the revisited protocol and check it whole: names, numbers, boxes and files.

    Args:
        folder: holds one ground-truth file gnd_*.pkl, or gnd_*.json with the same content, and the pictures
            jpg/NAME.jpg. The content: imlist and qimlist, names of the database and the query images, and gnd, for each
            query a box bbx of left, top, right, bottom and the lists easy, hard and junk of numbers into imlist. A
            pickle is read as plain data (`foveal.backbone.plain_pickle`); nothing in it runs.

    Raises:
        FovealError: no or several ground-truth files, or one of another form; what is wrong is named.
        ImageSetError: pictures that are missing, named.
    """
    folder = Path(folder)
    path = _only(_truth_files(folder), folder)
    content = read_plain_pickle(path) if path.suffix == ".pkl" else _read_json(path)
    if not isinstance(content, dict) or any(not isinstance(content.get(part), list) for part in _PARTS):
        keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise FovealError(f"{path} holds {keys[:200]}; a ground truth holds the lists {', '.join(_PARTS)}")
    names, query_names = (_names(content[part], part, path) for part in ("imlist", "qimlist"))
    if len(content["gnd"]) != len(query_names):
        raise FovealError(
            f"{path}: gnd has {len(content['gnd'])} entries for {len(query_names)} queries; copy it again"
        )
    if shared := set(names) & set(query_names):
        raise FovealError(
            f"{path}: {len(shared)} queries are in the database as well, first {min(shared)}; "
            "each would find itself, take them out of imlist"
        )
    entries = [_entry(entry, name, len(names), path) for entry, name in zip(content["gnd"], query_names, strict=True)]
    public, *sizes = _PUBLIC.get(path.stem, ("", 0, 0))
    return Revisited(
        name=public if sizes == [len(query_names), len(names)] else folder.resolve().name,
        queries=ImageSet.of_files(folder, [f"jpg/{name}.jpg" for name in query_names]),
        database=ImageSet.of_files(folder, [f"jpg/{name}.jpg" for name in names]),
        boxes=[box for box, _ in entries],
        truths=[truth for _, truth in entries],
    )


def _truth_files(folder: Path) -> list[Path]:
    return sorted(path for suffix in ("pkl", "json") for path in folder.glob(f"gnd_*.{suffix}"))


def _only(files: list[Path], folder: Path) -> Path:
    if len(files) != 1:
        seen = ", ".join(path.name for path in files) or "none"
        raise FovealError(f"{folder} holds {len(files)} ground-truth files gnd_*.pkl or gnd_*.json ({seen}); leave one")
    return files[0]


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FovealError(f"{path} cannot be read as JSON ({error}); copy it again") from error


def _names(listed: list[object], part: str, path: Path) -> list[str]:
    names = [name for name in listed if isinstance(name, str) and name and "/" not in name]
    if len(names) != len(listed) or len(set(names)) != len(names) or not names:
        raise FovealError(f"{path}: {part} must list file names without folder and ending, each once, at least one")
    return names


def _entry(entry: object, query: str, num_images: int, path: Path) -> tuple[tuple[float, float, float, float], Truth]:
    where = f"{path}: the entry of query {query}"
    if not isinstance(entry, dict) or set(entry) != {"bbx", *_LEVELS}:
        keys = ", ".join(map(str, entry)) if isinstance(entry, dict) else type(entry).__name__
        raise FovealError(
            f"{where} holds {keys[:200]}; it must hold bbx, easy, hard and junk, as the revisited form does"
        )
    levels = {}
    for level in _LEVELS:
        numbers = entry[level]
        if not isinstance(numbers, list) or any(type(n) is not int or not 0 <= n < num_images for n in numbers):
            raise FovealError(f"{where}: {level} must list numbers from 0 to {num_images - 1} (of imlist)")
        levels[level] = np.array(numbers, dtype=np.int64)
    every = np.concatenate(list(levels.values()))
    if len(np.unique(every)) < len(every):
        raise FovealError(f"{where} lists an image twice among easy, hard and junk; correct it")
    box = entry["bbx"]
    if not isinstance(box, list) or len(box) != 4 or any(type(side) not in (int, float) for side in box):
        raise FovealError(f"{where}: bbx must be left, top, right, bottom in pixels")
    left, top, right, bottom = map(float, box)
    if not (left < right and top < bottom):
        raise FovealError(f"{where}: bbx {box} is empty; it must be left, top, right, bottom in pixels")
    return (left, top, right, bottom), Truth(**levels)
