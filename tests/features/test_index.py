import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from foveal.errors import FovealError
from foveal.features.database import Database
from foveal.features.index import Index, build_index, recall_of
from foveal.features.search import Neighbours, search_exact

pytest.importorskip("faiss", reason="faiss is not installed (extra ann)")

IDENTITY: dict[str, Any] = {"token": "cls", "stamp": {"model": "a", "shape": (2, 3)}}
WIDTH = 17


def _clusters(num_rows: int, *, seed: int) -> Tensor:
    """Rows around 40 common centres."""
    centres = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    chosen = centres[torch.randint(40, (num_rows,), generator=generator)]
    return 3 * chosen + 2 * torch.randn(num_rows, WIDTH, generator=generator)


@pytest.fixture(scope="module")
def database() -> Database:
    return Database.of_array(_clusters(4001, seed=0))


@pytest.fixture(scope="module")
def built(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "index"
    build_index(database, folder, identity=IDENTITY)
    return folder


def test_index_finds_what_its_card_says(database: Database, built: Path) -> None:
    index = Index.open(built, identity=IDENTITY)
    recall, parameters = index.card["recall"], index.card["parameters"]
    assert recall["value"] >= 0.95
    assert 1 <= parameters["num_probed"] < parameters["num_lists"] == 4001 // 64
    queries = _clusters(300, seed=1)  # rows that the index has not seen
    found, truth = index.search(queries, database, k=10), search_exact(queries, database, k=10)
    # 300 queries against the 256 of the card: their difference has a deviation of some 0.01
    assert recall_of(found, truth) == pytest.approx(recall["value"], abs=0.04)
    same = found.indices == truth.indices
    assert torch.equal(found.similarities[same], truth.similarities[same])  # exact, not those of the codes
    assert (found.similarities.diff(dim=1) <= 0).all()


def test_one_list_alone_finds_less(database: Database, built: Path) -> None:
    """What the calibration is for."""
    index = Index.open(built, identity=IDENTITY)
    index.card["parameters"]["num_probed"] = 1
    queries = _clusters(100, seed=1)
    assert recall_of(index.search(queries, database, k=10), search_exact(queries, database, k=10)) < 0.9


def test_k_beyond_the_lists_is_searched_exactly(database: Database, built: Path) -> None:
    index = Index.open(built, identity=IDENTITY)
    found, truth = (f(_clusters(2, seed=1), database, k=4001) for f in (index.search, search_exact))
    assert torch.equal(found.indices, truth.indices)


def test_k_and_queries_are_checked(database: Database, built: Path) -> None:
    index = Index.open(built, identity=IDENTITY)
    with pytest.raises(FovealError, match="k=4002 neighbours of a database of 4001 rows"):
        index.search(_clusters(2, seed=1), database, k=4002)
    with pytest.raises(FovealError, match="query holds NaN"):
        index.search(torch.full((1, WIDTH), torch.nan), database, k=1)


def test_too_low_a_recall_is_refused_and_nothing_written(tmp_path: Path) -> None:
    """Rows that differ by less than 8 bits can tell: every list is read, and the codes are not enough."""
    rows = torch.ones(1000, WIDTH) + 1e-3 * torch.randn(1000, WIDTH, generator=torch.Generator().manual_seed(0))
    rows[::100] = torch.eye(WIDTH)[:10]
    with pytest.raises(FovealError, match=r"below min_recall=0.95; search this store exactly, or accept less"):
        build_index(Database.of_array(rows), tmp_path / "index", identity=IDENTITY)
    assert not list(tmp_path.iterdir())


def test_index_of_another_store_is_refused(built: Path) -> None:
    changed = {**IDENTITY, "stamp": {"model": "b", "shape": (2, 3)}}
    with pytest.raises(FovealError, match="index of another store, or the store changed since: stamp differ"):
        Index.open(built, identity=changed)


def test_damaged_index_is_refused(database: Database, tmp_path: Path) -> None:
    build_index(database, tmp_path / "index", identity=IDENTITY)
    path = tmp_path / "index" / "index.faiss"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FovealError, match=r"index.faiss is damaged: its sha256"):
        Index.open(tmp_path / "index", identity=IDENTITY)
    path.unlink()
    with pytest.raises(FovealError, match=r"index\.faiss cannot be read"):
        Index.open(tmp_path / "index", identity=IDENTITY)


@pytest.mark.parametrize("card", ["", "[]", "{}", '{"kind": "other"}'])
def test_folder_without_a_card_of_ours_is_no_index(card: str, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(card)
    with pytest.raises(FovealError, match="is not an index"):
        Index.open(tmp_path, identity=IDENTITY)


def test_index_is_replaced_and_nothing_else_is(database: Database, built: Path, tmp_path: Path) -> None:
    before = json.loads((built / "card.json").read_text())
    build_index(database, built, identity=IDENTITY)
    assert json.loads((built / "card.json").read_text()) == before  # the same rows give the same index
    assert [path.name for path in built.parent.iterdir()] == ["index"]
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(FovealError, match="is not an index"):
        build_index(database, tmp_path, identity=IDENTITY)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_what_needs_no_index_and_wrong_limits_are_named(tmp_path: Path) -> None:
    few = Database.of_array(np.ones((100, 3), np.float32))
    with pytest.raises(FovealError, match="100 rows need no index; search them exactly"):
        build_index(few, tmp_path / "index", identity=IDENTITY)
    with pytest.raises(FovealError, match=r"min_recall=1\.5; choose above 0, up to 1"):
        build_index(few, tmp_path / "index", identity=IDENTITY, min_recall=1.5)


def test_recall_counts_an_equally_similar_row() -> None:
    truth = Neighbours(torch.tensor([[0.9, 0.5], [0.9, 0.8]]), torch.tensor([[1, 2], [3, 4]]))
    found = Neighbours(torch.tensor([[0.9, 0.5], [0.9, 0.7]]), torch.tensor([[1, 7], [3, 5]]))
    assert recall_of(found, truth) == 0.75
