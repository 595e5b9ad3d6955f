"""An approximate index for stores too large to search exactly each time: inverted lists of 8-bit codes, by faiss.

Rows are put into lists around about 4 * sqrt(N) centres; a search reads the lists whose centres are nearest to the
query and orders its candidates again by their exact similarities, read from the store. An index is a folder of two
files, `index.faiss` and `card.json`; it belongs to one token of one store and is refused for another.
"""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import foveal
from foveal.errors import FovealError
from foveal.features.database import Database
from foveal.features.neighbours import check_k
from foveal.features.search import Neighbours, check_queries, rank_exactly, search_exact, without_self
from foveal.files import publish, sha256_of

logger = logging.getLogger(__name__)

KIND = "foveal index"
CARD, FILE = "card.json", "index.faiss"
DEFAULT_MIN_RECALL = 0.95
RECALL_K = 10
_SET_ROWS, _MEASURE_ROWS = 128, 256  # searched for, to set the effort and to measure the recall
_ROWS_PER_LIST = 64  # at least, on average
_TRAIN_ROWS_PER_LIST = 48

Progress = Callable[[int, int], None]


class Index:
    """An open index; `card` says what it belongs to, how it was built and what recall was measured.

    Use `Index.open` or `build_index`.
    """

    def __init__(self, card: dict[str, Any], lists: Any) -> None:
        self.card = card
        self._lists = lists

    @classmethod
    def open(cls, folder: str | Path, *, identity: Mapping[str, Any]) -> "Index":
        """Open an index folder; its lists stay on the disk and are read as searches need them.

        Args:
            folder: written by `build_index`.
            identity: what the index must have been built for, as given to `build_index`.

        Raises:
            FovealError: no index, a damaged one, one of another or a changed store, or faiss is not installed.
        """
        folder = Path(folder)
        card = read_card(folder)
        if card["identity"] != _plain(identity):
            wanted, held = _plain(identity), card["identity"]
            changed = sorted(name for name in {*wanted, *held} if wanted.get(name) != held.get(name))
            name = changed[0]
            raise FovealError(
                f"{folder} is the index of another store, or the store changed since: {', '.join(changed)} differ "
                f"({name} is {_short(wanted.get(name))}, of the index {_short(held.get(name))}); "
                "build it again with foveal index"
            )
        faiss = import_faiss()
        path = folder / FILE
        try:
            if (seen := sha256_of(path)) != card["sha256"][FILE]:
                raise FovealError(f"{path} is damaged: its sha256 is {seen}, the card says {card['sha256'][FILE]}")
            lists = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        except (OSError, RuntimeError) as error:
            raise FovealError(f"{path} cannot be read ({error}); build it again with foveal index") from error
        return cls(card, lists)

    def search(self, queries: Tensor, database: Database, *, k: int) -> Neighbours:
        """Find rows most similar to each query by cosine; most of the true ones, with their exact similarities.

        A query whose lists hold fewer than k rows is searched exactly, so that k neighbours always come back.

        Args:
            queries: (Q, D) float.
            database: of the store that the index was built for.
            k: neighbours, 1 to N. The recall in the card is that of the first 10.
        """
        queries = check_queries(queries, database, k)
        return _search(self._lists, queries, database, k=k, num_lists=int(self.card["parameters"]["num_probed"]))


def build_index(
    database: Database,
    folder: str | Path,
    *,
    identity: Mapping[str, Any],
    min_recall: float = DEFAULT_MIN_RECALL,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build an index, set its effort, measure its recall, and write it as a folder in one move.

    The number of lists is 4 * sqrt(N), at most N / 64. Rows drawn evenly from the store are searched for, themselves
    left out: 128 set how many lists a search reads, about the fewest that find (1 + min_recall) / 2 of the true ten
    nearest; 256 others measure the recall@10 that the card states. Memory: D + 8 bytes a row for the codes, and
    the training rows, 48 a list.

    Args:
        database: rows to index.
        folder: where; an earlier index is replaced, anything else is left alone.
        identity: what the rows are: store stamp, hash and token; any JSON.
        min_recall: the least recall@10 to accept, above 0, up to 1.
        progress: called with (rows done, rows in all).

    Returns:
        The card.

    Raises:
        FovealError: too few rows, a recall below `min_recall`, a folder that is something else or cannot be written,
            or faiss is not installed.
    """
    if not 0 < min_recall <= 1:
        raise FovealError(f"min_recall={min_recall}; choose above 0, up to 1")
    if database.num_rows < 2 * _ROWS_PER_LIST:
        raise FovealError(
            f"{database.num_rows} rows need no index; search them exactly (an index starts at {2 * _ROWS_PER_LIST})"
        )
    folder = check_target(folder)
    faiss = import_faiss()
    num_lists = max(1, min(round(4 * math.sqrt(database.num_rows)), database.num_rows // _ROWS_PER_LIST))
    lists = _filled_lists(faiss, database, num_lists, progress)
    num_probed, recall, num_measured = _calibrate(lists, database, min_recall)
    if recall < min_recall:
        raise FovealError(
            f"the index finds {recall:.3f} of the true 10 nearest of {num_measured} queries when it reads {num_probed} "
            f"of its {num_lists} lists, below min_recall={min_recall}; search this store exactly, or accept less by "
            "--min-recall"
        )
    card: dict[str, Any] = {
        "kind": KIND,
        "version": 1,
        "identity": _plain(identity),
        "num_rows": database.num_rows,
        "width": database.width,
        "parameters": {"num_lists": num_lists, "num_probed": num_probed, "codes": "8 bits a number"},
        "recall": {"k": RECALL_K, "value": recall, "num_queries": num_measured, "limit": min_recall},
        "versions": {"foveal": foveal.__version__, "faiss": faiss.__version__},
    }
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        faiss.write_index(lists, str(staging / FILE))
        card["sha256"] = {FILE: sha256_of(staging / FILE)}
        (staging / CARD).write_text(json.dumps(card, indent=2) + "\n")
        publish(staging, folder)
    except (OSError, RuntimeError) as error:
        raise FovealError(f"{folder} cannot be written ({error}); free space or choose another place") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return card


def check_target(folder: str | Path) -> Path:
    """Return the absolute path of a folder that an index may be written to; FovealError where it is something else."""
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if not (folder / CARD).is_file():
            raise FovealError(f"{folder} exists and is not an index; choose another place or remove it")
        read_card(folder)
    return folder


def read_card(folder: Path) -> dict[str, Any]:
    """Read the card of an index folder; FovealError when it is none, or of another version."""
    if not folder.exists():
        raise FovealError(f"there is no index {folder}; build one with foveal index, or search exactly")
    try:
        card = json.loads((folder / CARD).read_text())
        kind, version, _ = card["kind"], card["version"], (card["identity"], card["sha256"][FILE], card["parameters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FovealError(f"{folder} is not an index, or a damaged one; build one with foveal index") from error
    if kind != KIND or version != 1:
        raise FovealError(f"{folder} is a {kind!r} of version {version!r}, not a {KIND!r} of version 1")
    return card


def recall_of(found: Neighbours, truth: Neighbours) -> float:
    """Return the share of the true neighbours that were found; others of the same float32 similarity count."""
    same = (found.indices[:, :, None] == truth.indices[:, None, :]).any(dim=2)
    return float((same | (found.similarities >= truth.similarities[:, -1:])).double().mean())


def _filled_lists(faiss: ModuleType, database: Database, num_lists: int, progress: Progress | None) -> Any:
    quantizer = faiss.IndexFlatIP(database.width)
    lists = faiss.IndexIVFScalarQuantizer(
        quantizer, database.width, num_lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    lists.cp.spherical = True
    lists.cp.min_points_per_centroid = 1  # else it prints a warning; there are 48, or all of a small store
    sample = evenly_drawn(database.num_rows, num_lists * _TRAIN_ROWS_PER_LIST)
    lists.train(_unit(database.read(sample)).numpy())
    for first, block, inverse in database.scored_blocks(torch.device("cpu")):
        lists.add((block * inverse[:, None]).numpy())
        if progress:
            progress(first + len(block), database.num_rows)
    lists.own_fields = True
    quantizer.this.disown()
    return lists


def _calibrate(lists: Any, database: Database, min_recall: float) -> tuple[int, float, int]:
    """Return how many lists to read, the recall@10 then, and on how many queries it was measured."""
    numbers = torch.from_numpy(evenly_drawn(database.num_rows, _SET_ROWS + _MEASURE_ROWS))
    queries = database.read(numbers.numpy()).float()
    truth = without_self(search_exact(queries, database, k=RECALL_K + 1), numbers)
    setting = torch.arange(len(numbers)) % 3 == 0  # all over the store, as the others are

    def recall(chosen: Tensor, num_lists: int) -> float:
        found = _search(lists, queries[chosen], database, k=RECALL_K + 1, num_lists=num_lists)
        return recall_of(
            without_self(found, numbers[chosen]), Neighbours(truth.similarities[chosen], truth.indices[chosen])
        )

    num_probed, wanted = 1, (1 + min_recall) / 2
    while num_probed < lists.nlist and recall(setting, num_probed) < wanted:
        num_probed = min(lists.nlist, math.ceil(num_probed * 1.4))
    return num_probed, recall(~setting, num_probed), int((~setting).sum())


def _search(lists: Any, queries: Tensor, database: Database, *, k: int, num_lists: int) -> Neighbours:
    import faiss

    check_k(k, database.num_rows)
    num_candidates = min(database.num_rows, 4 * k + 32)
    parameters = faiss.SearchParametersIVF(nprobe=num_lists)  # type: ignore[call-arg]  # its stubs know no fields
    _, candidates = lists.search(_unit(queries).numpy(), num_candidates, params=parameters)
    found = rank_exactly(queries, database, torch.from_numpy(candidates), k=k)
    short = (found.indices[:, -1] < 0).nonzero().squeeze(1)
    if len(short):
        logger.info("the lists of %d queries hold fewer than k=%d rows; searching exactly for them", len(short), k)
        exact = search_exact(queries[short], database, k=k)
        found.similarities[short], found.indices[short] = exact
    return found


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.double(), dim=1, eps=1e-300).float()


def evenly_drawn(num_rows: int, count: int) -> np.ndarray:
    """Return up to `count` row numbers, one drawn from each of as many equal stretches; always the same."""
    if count >= num_rows:
        return np.arange(num_rows)
    edges = np.linspace(0, num_rows, count + 1).astype(np.int64)
    return np.random.default_rng(0).integers(edges[:-1], edges[1:])


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON keeps of it, so that it equals what was read back."""
    return json.loads(json.dumps(identity))


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def import_faiss() -> ModuleType:
    """Return the package faiss; FovealError says how to install it."""
    try:
        import faiss
    except ImportError as error:
        raise FovealError(
            f"an index needs faiss, which cannot be imported ({error}); pip install 'foveal[ann]', or search exactly"
        ) from error
    return faiss
