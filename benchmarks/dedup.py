"""Finding copies among many vectors: time, memory and recall of `foveal dedup`, beside exact searches, in one run.

    python benchmarks/dedup.py --folder DISK                     # 100,000, 1,000,000 and 5,000,000 rows of width 384
    python benchmarks/dedup.py --folder DISK --rows 100000       # a part
    python benchmarks/dedup.py --folder DISK --kind isotropic    # vectors without any structure

Every part is a process of its own whose result is kept in the folder: repeated, the command goes on, and prints all.
It needs faiss (extra ann) and some 3 KB of disk a row.

The rows lie on the disk as float16. Four fifths are a mixture that resembles features: rows / 200 clusters whose sizes
fall with rank^-0.7; within a cluster 48 directions, of 16 sets that clusters share, hold most of the variance, the rest
is spread over all 384. Rows of a cluster have a mean cosine of about 0.35, and some exceed 0.6 by nature, as pictures
do. The last fifth are copies: random rows of those before at a cosine drawn evenly from 0.6 to 1, the difference in a
random direction. With `--kind isotropic` the first four fifths are normal noise.

The exact search compares all rows in bf16 where the processor has it (`curate/pairs.py`). Its rate is measured on
10,000 rows against all, and extrapolated to all against all. faiss: IndexFlatIP, k = 64, 1,000 queries, likewise.
Memory is the peak of anonymous pages: pages of files, which the system may drop at any time, are not counted.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from foveal.curate.dedup import DedupSettings, run_dedup
from foveal.curate.pairs import search_all
from foveal.curate.runner import Runner
from foveal.curate.stage import read_stage
from foveal.curate.vectors import Vectors
from foveal.features.index import evenly_drawn

WIDTH, SIMILARITY, K = 384, 0.6, 64
BLOCK = 50_000
EXACT_QUERIES, FAISS_QUERIES, FAISS_ROWS = 10_000, 1_000, 1_000_000
EXACT_WHOLE = 100_000  # rows up to which the exact search is also run on all


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def originals(num_rows: int, kind: str) -> Callable[[int, np.random.Generator], np.ndarray]:
    """Return a function that draws (n, WIDTH) rows of the kind; see the top."""
    if kind == "isotropic":
        return lambda n, generator: generator.standard_normal((n, WIDTH), dtype=np.float32)
    clusters = max(1, num_rows // 200)
    fixed = np.random.default_rng(7)
    centres = unit(fixed.standard_normal((clusters, WIDTH), dtype=np.float32))
    directions = fixed.standard_normal((16, 48, WIDTH), dtype=np.float32) / np.sqrt(WIDTH)
    share = np.arange(1, clusters + 1) ** -0.7

    def draw(n: int, generator: np.random.Generator) -> np.ndarray:
        cluster = generator.choice(clusters, n, p=share / share.sum())
        rows = centres[cluster]
        places = generator.standard_normal((n, 48), dtype=np.float32) / np.sqrt(48)
        for number in range(16):
            here = cluster % 16 == number
            rows[here] += 1.3 * places[here] @ directions[number]
        return rows + 0.5 * generator.standard_normal((n, WIDTH), dtype=np.float32) / np.sqrt(WIDTH)

    return draw


def write_rows(path: Path, num_rows: int, kind: str) -> dict[str, Any]:
    """Write the rows, and beside them of which row each copy is and at which cosine."""
    generator, draw = np.random.default_rng(0), originals(num_rows, kind)
    num_originals = num_rows * 4 // 5
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(num_rows, WIDTH))
    for start in range(0, num_originals, BLOCK):
        stop = min(start + BLOCK, num_originals)
        rows[start:stop] = unit(draw(stop - start, generator))
    sources = generator.integers(0, num_originals, num_rows - num_originals)
    cosines = generator.uniform(SIMILARITY, 1, len(sources)).astype(np.float32)
    for start in range(0, len(sources), BLOCK):
        some = slice(start, start + BLOCK)
        source, cosine = unit(rows[sources[some]].astype(np.float32)), cosines[some, None]
        noise = generator.standard_normal(source.shape, dtype=np.float32)
        noise = unit(noise - (noise * source).sum(axis=1, keepdims=True) * source)
        rows[num_originals + start : num_originals + start + len(source)] = (
            cosine * source + np.sqrt(1 - cosine**2) * noise
        )
    rows.flush()
    np.savez(path.with_suffix(".npz"), source=sources, cosine=cosines)
    return {}


@contextmanager
def measured(peaks: dict[str, float], name: str) -> Any:
    """Add the seconds and the peak of anonymous memory of a block, in MiB."""
    done, highest = threading.Event(), [0]

    def watch() -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            highest[0] = max(highest[0], int(status.partition("RssAnon:")[2].split()[0]))
            if done.wait(0.02):
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
        peaks[f"{name} s"] = seconds
        peaks[f"{name} MiB"] = highest[0] / 2**10


class TimedRunner(Runner):
    """A runner that notes time and memory of every step."""

    steps: dict[str, float] = {}  # noqa: RUF012  # of the only one of its process

    def run(self, task: Any, stage: Any, step: str, num_shards: int, **options: Any) -> None:
        """Run a step as ever, and note it."""
        with measured(self.steps, step):
            super().run(task, stage, step, num_shards, **options)


def run_whole(path: Path, search: str, out: Path) -> dict[str, Any]:
    """Run dedup as a whole, and compare what it found with what was planted."""
    vectors, whole = Vectors(path), dict[str, float]()
    settings = DedupSettings(search=search, similarity=SIMILARITY, neighbours=K, keep="first")  # type: ignore[arg-type]
    with measured(whole, "all"):
        stage = run_dedup(vectors, out=out, settings=settings, runner=TimedRunner())
    return {**whole, "steps": TimedRunner.steps, "summary": stage.summary, "planted": found_planted(path, out)}


def found_planted(path: Path, out: Path) -> dict[str, float]:
    """Return which share of the planted pairs is an edge, by cosine, of those that still reach the similarity."""
    planted, vectors, stage = np.load(path.with_suffix(".npz")), Vectors(path), read_stage(out)
    left, right = planted["source"], vectors.num_rows - len(planted["source"]) + np.arange(len(planted["source"]))
    wanted, found = left * vectors.num_rows + right, np.zeros(len(left), bool)
    for shard in range(len(list((out / "shards/pairs").glob("*.safetensors")))):
        edges = stage.load("pairs", shard)
        low, high = np.minimum(edges["left"], edges["right"]), np.maximum(edges["left"], edges["right"])
        found |= np.isin(wanted, low * vectors.num_rows + high)
    cosine, shares = planted["cosine"], {}
    for low, high in ((0.602, 0.65), (0.65, 0.7), (0.7, 0.8), (0.8, 0.9), (0.9, 1.0), (0.602, 1.0)):  # float16 rounds
        shares[f"{low:.2f}-{high:.2f}"] = float(found[(cosine >= low) & (cosine < high)].mean())
    return shares


def exact_rate(path: Path) -> dict[str, Any]:
    """Return the time of 10,000 rows against all, and what all against all would take."""
    vectors, times = Vectors(path), dict[str, float]()
    num_queries = min(EXACT_QUERIES, vectors.num_rows)
    queries, everything = evenly_drawn(vectors.num_rows, num_queries), np.arange(vectors.num_rows)
    search_all(vectors, queries[:64], vectors, everything[:BLOCK], similarity=SIMILARITY, k=K)  # warm
    with measured(times, "exact"):
        search_all(vectors, queries, vectors, everything, similarity=SIMILARITY, k=K)
    return rate_of(times["exact s"], num_queries, vectors.num_rows, vectors.num_rows) | times


def faiss_rate(path: Path) -> dict[str, Any]:
    """Return the time of 1,000 queries in a flat index, of a million rows at most."""
    import faiss

    vectors = Vectors(path)
    faiss.omp_set_num_threads(torch.get_num_threads())
    index, num_rows = faiss.IndexFlatIP(WIDTH), min(vectors.num_rows, FAISS_ROWS)
    for start in range(0, num_rows, BLOCK):
        index.add(vectors.read(start, min(start + BLOCK, num_rows)))
    queries = vectors.take(evenly_drawn(num_rows, FAISS_QUERIES))
    start = time.perf_counter()
    index.search(queries, K)
    return rate_of(time.perf_counter() - start, FAISS_QUERIES, num_rows, vectors.num_rows)


def rate_of(seconds: float, num_queries: int, num_rows: int, num_all: int) -> dict[str, Any]:
    """Return a rate, and what all rows against all would take."""
    operations = 2 * WIDTH * num_queries * num_rows
    return {
        "GFLOP/s": operations / seconds / 1e9,
        "all against all, extrapolated s": seconds * num_all / num_queries * num_all / num_rows,
    }


def run_part(part: str, path: Path, num_rows: int, kind: str) -> dict[str, Any]:
    """Run one part in this process."""
    if part == "data":
        return write_rows(path, num_rows, kind)
    if part == "exact rate":
        return exact_rate(path)
    if part == "faiss flat":
        return faiss_rate(path)
    return run_whole(path, part, path.with_name(f"{path.stem}-{part}"))


def print_all(results: dict[int, dict[str, Any]], kind: str) -> None:
    """Print what was measured."""
    console = Console(width=150)
    table = Table("rows", "search", "all, s", "peak MiB", "kept", "recall, measured", "recall, planted", "lists read")
    steps = Table("rows", "search", "step", "s", "peak MiB")
    for num_rows, parts in results.items():
        for search in ("exact", "lists"):
            if search not in parts:
                continue
            part = parts[search]
            summary, found = part["summary"], part["summary"]["search"]
            recall = f"{found['recall']:.4f} of {found['num_pairs_measured']}" if found.get("recall") else "exact"
            planted = f"{part['planted']['0.60-1.00']:.4f}"
            read = f"{found['num_lists_read']} of {found['num_lists']}" if "num_lists" in found else ""
            row = [f"{part['all s']:.1f}", f"{part['all MiB']:.0f}", f"{summary['num_kept']:,}", recall, planted, read]
            table.add_row(f"{num_rows:,}", search, *row)
            for step in (name.removesuffix(" s") for name in part["steps"] if name.endswith(" s")):
                numbers = [f"{part['steps'][f'{step} s']:.1f}", f"{part['steps'][f'{step} MiB']:.0f}"]
                steps.add_row(f"{num_rows:,}", search, step, *numbers)
        exact, flat, lists = parts["exact rate"], parts["faiss flat"], parts["lists"]
        whole = "all against all, extrapolated s"
        times = [exact[whole] / lists["all s"], flat[whole] / lists["all s"]]
        console.print(f"{num_rows:,} {kind}: lists {lists['all s']:.1f} s, {times[0]:.1f} times as fast as exact")
        console.print(f"exact: {exact['GFLOP/s']:.0f} GFLOP/s, all against all {exact[whole]:.0f} s, extrapolated")
        console.print(f"faiss flat: {flat['GFLOP/s']:.0f} GFLOP/s, {flat[whole]:.0f} s, {times[1]:.1f} times the lists")
        console.print("planted pairs found:", {name: round(share, 4) for name, share in lists["planted"].items()})
    console.print(table, steps)
    if len(results) > 1:
        sizes, seconds = np.log(list(results)), np.log([parts["lists"]["all s"] for parts in results.values()])
        memory = np.log([parts["lists"]["all MiB"] for parts in results.values()])
        growth = [np.polyfit(sizes, values, 1)[0] for values in (seconds, memory)]
        console.print(f"lists grow as rows^{growth[0]:.2f} in time, rows^{growth[1]:.2f} in memory")


def main() -> None:
    """Run the parts that have no result yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000])
    parser.add_argument("--kind", choices=["mixture", "isotropic"], default="mixture")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[int, dict[str, Any]] = {}
    for num_rows in arguments.rows:
        path = arguments.folder / f"{arguments.kind}-{num_rows}.npy"
        if arguments.part:
            found = run_part(arguments.part, path, num_rows, arguments.kind)
            path.with_name(f"{path.stem}-{arguments.part}.json").write_text(json.dumps(found))
            return
        parts = ["data", "exact rate", "faiss flat", "lists", *(["exact"] if num_rows <= EXACT_WHOLE else [])]
        for part in parts:
            result = path.with_name(f"{path.stem}-{part}.json")
            if not result.is_file():
                arguments.folder.mkdir(parents=True, exist_ok=True)
                options = ["--folder", arguments.folder, "--rows", num_rows, "--kind", arguments.kind, "--part", part]
                options += ["--threads", arguments.threads]
                print(f"{num_rows:,} {arguments.kind}: {part}", file=sys.stderr, flush=True)
                subprocess.run([sys.executable, __file__, *map(str, options)], check=True)
            results.setdefault(num_rows, {})[part] = json.loads(result.read_text())
    print_all(results, arguments.kind)


if __name__ == "__main__":
    main()
