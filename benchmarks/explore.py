"""How long the explorer takes for what people see, on a store of 100,000 images, and what its small patches lose.

    python benchmarks/explore.py                                      # 1.8 GB of disk for the store
    python benchmarks/explore.py --page                               # and the page itself, in Chromium
    python benchmarks/explore.py --images FOLDER --model MODEL        # the agreement with whole features

Features of 1,024 crops of the packaged photographs are made (cls and patches reduced to 64 channels, int8: 17 KB an
image) by a network with random weights, and their shards repeated until the store has as many images as asked for;
their files are repeated with them. A server of its own is asked over a socket on this computer, as the page asks it:

- the first grid: what the set is, names of the first 120 images, and 60 thumbnails, by six requests at a time;
- the heat map of a clicked patch over the visible images; and the best patch of every image. The first click measures
  the length of every patch and reads what the disk has, where the server has not done so yet: its time stands apart.

Floor of a scan: the codes and the kept lengths pass through memory once; its time is that over the bandwidth that
`--bandwidth` says (GB/s). Agreement: the share of the 100 most similar images that finding by the small patches has in
common with finding by whole float32 patches, over queries drawn from the images.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from explore_page import in_the_browser
from extract import write_photographs
from rich.console import Console
from rich.table import Table

import foveal
from foveal.backbone.licence import OWN
from foveal.backbone.variants import backbone_config
from foveal.backbone.vit import VisionTransformer
from foveal.backbone.weights import Card, save_model
from foveal.features.extraction import open_extraction
from foveal.features.heatmap import HeatMaps
from foveal.features.stamp import StoreSettings
from foveal.features.store import FeatureStore
from foveal.images.imageset import ImageSet

SMALL = StoreSettings(tokens=("cls", "patches"), dtype="int8", pca=64)
WHOLE = StoreSettings(tokens=("patches",), dtype="float32")
SHARD = SMALL.shard_size


def write_model(folder: Path) -> Path:
    """Save a small network with random weights that has the patches of ViT-S/14: 16 x 16 at 224 pixels."""
    config = backbone_config("vit_micro", patch_size=14, image_size=224, layerscale_init=1.0)
    backbone = VisionTransformer(config).init_weights(torch.Generator().manual_seed(0))
    save_model(folder, backbone, Card(name="random", backbone=config, licence=OWN))
    return folder


def write_store(folder: Path, model: Path, images: Path, num_images: int) -> Path:
    """Make a store of one shard, and repeat it."""
    write_photographs(images, num_images=SHARD)
    store = folder / "store"
    open_extraction(store, foveal.load(model), ImageSet.open(images), SMALL).run(max_bad_share=0)
    num_shards = -(-num_images // SHARD)
    first = store / "shards" / "00000"
    rows = pq.read_table(first / "rows.parquet")
    for shard in range(1, num_shards):
        place = store / "shards" / f"{shard:05d}"
        shutil.copytree(first, place)
        numbers = pa.array(np.arange(shard * SHARD, (shard + 1) * SHARD))
        pq.write_table(rows.set_column(0, rows.schema.field("row"), numbers), place / "rows.parquet")
    card = json.loads((store / "card.json").read_text())
    card["image_set"]["num_images"] = num_shards * SHARD
    (store / "card.json").write_text(json.dumps(card))
    return store


class Page:
    """A running `foveal explore`, and a client of it."""

    def __init__(self, store: Path, model: Path, out: Path) -> None:
        command = [sys.executable, "-m", "foveal", "explore", str(store), "--model", str(model), "--no-open"]
        self._process = subprocess.Popen(
            [*command, "--port", "0", "--out", str(out)], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert self._process.stdout is not None
        self.address = address = next(
            line.split()[-1] for line in self._process.stdout if line.startswith("explore at")
        )
        self.client = httpx.Client(base_url=address.partition("/explore")[0], timeout=120)
        self.client.get(address)  # the token becomes a cookie

    def get(self, path: str) -> httpx.Response:
        """Ask for something; an error ends the benchmark."""
        return self.client.get(f"/explore/api/{path}").raise_for_status()

    def post(self, path: str, **body: object) -> httpx.Response:
        """Send something; an error ends the benchmark."""
        return self.client.post(f"/explore/api/{path}", json=body).raise_for_status()

    def memory(self) -> str:
        """Return what the server holds: its own memory, and with the store's files as far as they are in memory."""
        found = {}
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("RssAnon", "VmRSS"):
                found[name] = int(value.split()[0]) / 2**20
        return f"{found['RssAnon']:.2f} GiB of its own, {found['VmRSS']:.2f} with mapped files"

    def end(self) -> None:
        """Stop the server."""
        self.client.close()
        self._process.terminate()
        self._process.wait(30)


def seconds(function: Callable[[], object]) -> float:
    """Return how long something takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def first_grid(page: Page) -> None:
    """Ask for what the page shows first."""
    page.get("set")
    page.get("images?start=0&count=120")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda row: page.get(f"thumbnail/{row}"), range(60)))


def times(page: Page, num_images: int, repeats: int) -> list[tuple[str, str]]:
    """Return what each thing took."""
    draw = np.random.default_rng(0)
    rows = np.sort(draw.choice(num_images, 1000, replace=False)).tolist()

    def click() -> tuple[int, int]:
        return int(draw.integers(num_images)), int(draw.integers(256))

    def heat(count: int) -> float:
        row, patch = click()
        return seconds(lambda: page.post("heat", row=row, patch=patch, rows=rows[:count]))

    def find() -> float:
        row, patch = click()
        return seconds(lambda: page.post("find", row=row, patch=patch, count=100))

    def said(values: list[float]) -> str:
        return f"{1000 * median(values):.0f} ms (worst {1000 * max(values):.0f})"

    found = [("first grid", f"{seconds(lambda: first_grid(page)):.2f} s")]
    found.append(("heat map on 1,000 images, first click", f"{1000 * heat(1000):.0f} ms"))
    found.append(("best patch of every image, first click", f"{find():.2f} s"))
    found.append(("best patch of every image", said([find() for _ in range(repeats)])))
    found.append(("heat map on 60 images", said([heat(60) for _ in range(repeats)])))
    found.append(("heat map on 1,000 images", said([heat(1000) for _ in range(repeats)])))
    found.append(("map by PCA, first time", f"{seconds(lambda: page.get('map')):.2f} s"))
    found.append(("memory of the server", page.memory()))
    return found


def agreement(images: ImageSet, model: Path, folder: Path, *, num_queries: int) -> float:
    """Return the mean share of 100 images that small and whole patches find in common."""
    stores = []
    for name, settings in (("small", SMALL), ("whole", WHOLE)):
        open_extraction(folder / name, foveal.load(model), images, settings).run(max_bad_share=0.05)
        stores.append(HeatMaps(FeatureStore.open(folder / name)))
    draw, shares = np.random.default_rng(1), []
    for _ in range(num_queries):
        row, patch = int(draw.integers(len(stores[0].store))), int(draw.integers(stores[0].grid[0] * stores[0].grid[1]))
        best = [set(np.argsort(-one.scan(one.vector(row, patch)).scores)[:100].tolist()) for one in stores]
        shares.append(len(best[0] & best[1]) / 100)
    return float(np.mean(shares))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--page", action="store_true", help="open the page in Chromium too (needs Playwright)")
    parser.add_argument("--bandwidth", type=float, default=15.0, help="of memory, GB/s, for the floor")
    parser.add_argument("--images", help="real images for the agreement")
    parser.add_argument("--model", type=Path, help="trained model for the agreement")
    parser.add_argument("--limit", type=int, default=2000, help="images, evenly spaced, of the agreement")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.images:
            chosen = ImageSet.open(args.images)
            chosen = chosen.subset(np.unique(np.linspace(0, len(chosen) - 1, args.limit).astype(int)))
            share = agreement(chosen, args.model or write_model(folder / "model"), folder, num_queries=50)
            Console().print(
                f"top-100 agreement of 64 channels in int8 with whole patches: {share:.3f} ({len(chosen)} images)"
            )
            return
        model = write_model(folder / "model")
        store = write_store(folder, model, folder / "photographs", args.num_images)
        num_images = -(-args.num_images // SHARD) * SHARD
        page = Page(store, model, folder / "out")
        try:
            found = times(page, num_images, args.repeats)
        finally:
            page.end()
        if args.page:
            page = Page(store, model, folder / "out")  # another, which has no picture at hand
            try:
                found += in_the_browser(page.address)
            finally:
                page.end()
        num_bytes = num_images * 256 * (64 + 4 + 4)
        table = Table(
            "what", "took", title=f"{num_images:,} images; floor of a scan {num_bytes / 1e9 / args.bandwidth:.2f} s"
        )
        for line in found:
            table.add_row(*line)
        Console().print(table)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        Console().print(f"this process: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
