"""Feature stores of vectors made on the spot, without a model."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from foveal.features.store import ROW_SCHEMA, StoreCard
from foveal.files import sha256_of

MakeStore = Callable[..., Path]


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    """Give a function that writes a store of vectors (N, D) and returns its folder.

    Names are those of the images, "0000.png" and so on unless given; with `pictures` the files exist, one colour each.
    """

    def make(
        vectors: np.ndarray,
        name: str = "store",
        *,
        uris: list[str] | None = None,
        model: str = "tiny",
        shard_size: int = 7,
        pictures: bool = False,
        sizes: np.ndarray | None = None,
    ) -> Path:
        root, folder = tmp_path / f"{name}-photos", tmp_path / name
        root.mkdir()
        names = uris or [f"{number:04d}.png" for number in range(len(vectors))]
        for number, uri in enumerate(names if pictures else []):
            (root / uri).parent.mkdir(parents=True, exist_ok=True)
            colour = tuple(np.random.default_rng(number).integers(0, 256, 3).tolist())
            Image.new("RGB", (24, 24), colour).save(root / uri)
        stamp = {
            "model": {"name": model, "sha256": f"hash of {model}"},
            "preprocessing": {"size": 28},
            "dtype": "float32",
            "pca": None,
            "shard_size": shard_size,
            "batch_size": 32,
            "tokens": ["cls"],
            "layers": None,
        }
        image_set = {"hash": f"set {name}", "num_images": len(vectors), "root": str(root)}
        card = StoreCard(stamp, image_set, {"cls": (vectors.shape[1],)})
        folder.mkdir()
        (folder / "card.json").write_text(card.to_json())
        widths = sizes if sizes is not None else np.full((len(vectors), 2), 24)
        for shard in range(card.num_shards):
            rows = list(card.rows_of(shard))
            place = folder / "shards" / f"{shard:05d}"
            place.mkdir(parents=True)
            np.save(place / "cls.npy", vectors[rows].astype(np.float32))
            table = [
                {
                    "row": row,
                    "id": names[row],
                    "uri": names[row],
                    "sha256": f"{row:064x}",
                    "bytes": 100 + row,
                    "width": int(widths[row][0]),
                    "height": int(widths[row][1]),
                    "label": None,
                    "reason": None,
                }
                for row in rows
            ]
            pq.write_table(pa.Table.from_pylist(table, schema=ROW_SCHEMA), place / "rows.parquet")
            files = {"cls.npy": {"sha256": sha256_of(place / "cls.npy"), "bytes": 1}}
            (place / "done.json").write_text(json.dumps({"num_features": len(rows), "bad": {}, "files": files}))
        return folder

    return make
