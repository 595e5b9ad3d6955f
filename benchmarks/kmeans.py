"""Spherical k-means of many vectors: time and inertia of `foveal cluster` beside faiss.Kmeans, in one run.

    python benchmarks/kmeans.py --folder DISK                    # 100,000 and 1,000,000 rows of width 384
    python benchmarks/kmeans.py --folder DISK --rows 100000      # a part

Every part is a process of its own whose result is kept in the folder: repeated, the command goes on, and prints all.
It needs faiss (extra ann) and 1 KB of disk a row; the rows are those of `benchmarks/dedup.py`, float16.

`foveal cluster` makes two levels of 1,000 and 50 clusters, without resampling, which raises the inertia on purpose, and
once with it. Its time is that of the whole stage, from rows on the disk to every row's cluster on the disk.
faiss.Kmeans (spherical) works on float32 rows in memory; its time is that of training alone, by its own clock: neither
reading rows nor the last assignment counts. Three ways: "all rows" are trained on until the time of foveal is over,
"256 a cluster" is faiss's default, a random sample of these, with as many steps as its default, 25, and "256 a cluster,
longer" the same until the time is over. Its second level is faiss.Kmeans of the first's centroids, not timed.

Inertia is the mean of 1 - cosine, over all rows: to the centroid of their cluster, and to that of the cluster above.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dedup import WIDTH, measured, write_rows
from rich.console import Console
from rich.table import Table

from foveal.curate.cluster import ClusterSettings, load_clusters, run_cluster
from foveal.curate.kmeans import assign
from foveal.curate.vectors import Vectors

LEVELS = (1000, 50)
BLOCK = 50_000
FAISS_STEPS, FAISS_SAMPLE = 25, 256  # its defaults
MOST_STEPS = 500
OURS, RESAMPLED = "foveal", "foveal, resampled"
FAISS = ("faiss, all rows", "faiss, 256 a cluster", "faiss, 256 a cluster, longer")


def inertia_of(vectors: Vectors, finest: np.ndarray, coarse: np.ndarray) -> dict[str, float]:
    """Return the mean of 1 - cosine of all rows to their centroids, by level, in float32 products."""
    above = assign(finest, coarse, bf16=False).clusters
    totals = np.zeros(2)
    for start in range(0, vectors.num_rows, BLOCK):
        rows = vectors.read(start, min(start + BLOCK, vectors.num_rows))
        found = assign(rows, finest, bf16=False)
        totals[0] += (1 - found.similarities).sum()
        totals[1] += (1 - np.einsum("cd,cd->c", rows, coarse[above[found.clusters]], dtype=np.float64)).sum()
    return {f"inertia {level}": total / vectors.num_rows for level, total in enumerate(totals.tolist(), 1)}


def run_ours(path: Path, out: Path, resampling: int) -> dict[str, Any]:
    """Run the stage, and measure it."""
    vectors, used = Vectors(path), dict[str, float]()
    shutil.rmtree(out, ignore_errors=True)
    with measured(used, "all"):
        run_cluster(vectors, out=out, settings=ClusterSettings(levels=LEVELS, resampling=(resampling,)))
    found = load_clusters(out)
    return used | inertia_of(vectors, *found.centroids)


def run_faiss(path: Path, part: str, seconds: float) -> dict[str, Any]:
    """Train faiss for some time at least, from the start each time that this was not long enough."""
    import faiss

    vectors = Vectors(path)
    faiss.omp_set_num_threads(torch.get_num_threads())
    rows = np.concatenate(
        [vectors.read(start, min(start + BLOCK, vectors.num_rows)) for start in range(0, vectors.num_rows, BLOCK)]
    )
    most = FAISS_SAMPLE if "256" in part else -(-len(rows) // LEVELS[0])

    def trained(points: np.ndarray, k: int, steps: int) -> Any:
        kmeans = faiss.Kmeans(
            WIDTH, k, niter=steps, spherical=True, seed=0, max_points_per_centroid=most, min_points_per_centroid=1
        )
        kmeans.train(points)
        return kmeans

    steps = FAISS_STEPS if part == FAISS[1] else 3
    finest = trained(rows, LEVELS[0], steps)
    while part != FAISS[1] and (spent := finest.iteration_stats[-1]["time"]) < seconds and steps < MOST_STEPS:
        steps = min(MOST_STEPS, int(np.ceil(steps * seconds / spent)) + 1)  # the same again, and longer
        finest = trained(rows, LEVELS[0], steps)
    coarse = trained(finest.centroids, LEVELS[1], FAISS_STEPS)
    used = {"all s": finest.iteration_stats[-1]["time"], "steps": steps}
    return used | inertia_of(vectors, finest.centroids, coarse.centroids)


def product_rate() -> dict[str, float]:
    """Return the rate of products of float32 and bf16, which bounds that of assignments."""
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.randn(8192, WIDTH).to(dtype), torch.randn(WIDTH, LEVELS[0]).to(dtype)
        left @ right
        start, times = time.perf_counter(), 20
        for _ in range(times):
            left @ right
        operations = 2 * left.numel() * LEVELS[0] * times
        rates[str(dtype).removeprefix("torch.")] = operations / (time.perf_counter() - start) / 1e9
    return rates


def run_part(part: str, path: Path) -> dict[str, Any]:
    """Run one part in this process."""
    if part == "data":
        num_rows = int(path.stem.rpartition("-")[2])
        return {} if path.is_file() else write_rows(path, num_rows, "mixture")
    if part == "products":
        return product_rate()
    if part in FAISS:
        return run_faiss(path, part, json.loads(result_of(path, OURS).read_text())["all s"])
    return run_ours(path, path.with_name(f"{path.stem}-clusters"), 10 if part == RESAMPLED else 0)


def result_of(path: Path, part: str) -> Path:
    """Return where the result of a part is kept."""
    return path.with_name(f"{path.stem}-kmeans-{part.replace(', ', '-').replace(' ', '-')}.json")


def print_all(results: dict[int, dict[str, Any]]) -> None:
    """Print what was measured."""
    table = Table("rows", "", "s", "peak MiB", "steps", f"inertia, {LEVELS[0]:,} clusters", f"inertia, {LEVELS[1]}")
    for num_rows, parts in results.items():
        rates, step = parts["products"], 2 * num_rows * WIDTH * LEVELS[0] / 1e9
        least = {dtype: round(step / rate, 2) for dtype, rate in rates.items()}
        print(f"{num_rows:,} rows: products of one assignment take {least} s, at {rates} GFLOP/s")
        for part in (OURS, *FAISS, RESAMPLED):
            found = parts[part]
            numbers = [f"{found['all s']:.1f}", f"{found.get('all MiB', 0):.0f}", str(found.get("steps", ""))]
            table.add_row(f"{num_rows:,}", part, *numbers, f"{found['inertia 1']:.5f}", f"{found['inertia 2']:.5f}")
    Console(width=150).print(table)


def main() -> None:
    """Run the parts that have no result yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[int, dict[str, Any]] = {}
    for num_rows in arguments.rows:
        path = arguments.folder / f"mixture-{num_rows}.npy"
        if arguments.part:
            result_of(path, arguments.part).write_text(json.dumps(run_part(arguments.part, path)))
            return
        for part in ("data", "products", OURS, *FAISS, RESAMPLED):
            result = result_of(path, part)
            if not result.is_file():
                arguments.folder.mkdir(parents=True, exist_ok=True)
                options = ["--folder", arguments.folder, "--rows", num_rows, "--threads", arguments.threads]
                print(f"{num_rows:,}: {part}", file=sys.stderr, flush=True)
                subprocess.run([sys.executable, __file__, *map(str, options), "--part", part], check=True)
            results.setdefault(num_rows, {})[part] = json.loads(result.read_text())
    print_all(results)


if __name__ == "__main__":
    main()
