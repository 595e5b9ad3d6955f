"""Latency and recall of search: exact, by an index, and by faiss and plain PyTorch as peers, in one run.

    python benchmarks/search.py                      # 10,000, 100,000 and 1,000,000 rows of width 384
    python benchmarks/search.py --rows 10000         # a part

It needs faiss (extra ann).

The rows are a mixture: as many clusters as rows / 50, of sizes that fall with the root of their rank, with a spectrum
that falls as 1 / i in variance, as trained features have; the queries are drawn from it too and are not among the rows.
The database lies on the disk as float16, as a feature store keeps it, and is read through a memory map; the peers hold
theirs in memory as normalised float32, which takes them time and memory that is not counted. Rows of one size are
measured in turns, so that a machine that changes its speed changes it for all; columns are medians, recall@10 is
against float64. The floor is the time to read the rows once at the measured memory rate, or to multiply them at the
measured matrix rate, whichever is longer.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from foveal.features.database import Database
from foveal.features.index import Index, build_index, recall_of
from foveal.features.neighbours import top_k_of_blocks
from foveal.features.search import Neighbours, search_exact

WIDTH, K, BATCH = 384, 10, 100
Search = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def mixture(num_rows: int, *, clusters: int, seed: int) -> np.ndarray:
    """Return (num_rows, WIDTH) float32 of the mixture; the same clusters for every seed."""
    spectrum = (np.arange(1, WIDTH + 1) ** -0.5).astype(np.float32)
    centres = np.random.default_rng(7).standard_normal((clusters, WIDTH), dtype=np.float32) * spectrum
    share = np.arange(1, clusters + 1) ** -0.5
    generator = np.random.default_rng(seed)
    chosen = generator.choice(clusters, num_rows, p=share / share.sum())
    rows = generator.standard_normal((num_rows, WIDTH), dtype=np.float32)
    rows *= 0.6 * spectrum
    rows += centres[chosen]
    return rows


def write_rows(path: Path, num_rows: int) -> None:
    """Write the database as float16, block by block."""
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(num_rows, WIDTH))
    for seed, start in enumerate(range(0, num_rows, 50_000)):
        stop = min(start + 50_000, num_rows)
        rows[start:stop] = mixture(stop - start, clusters=num_rows // 50, seed=seed)
    rows.flush()


def has_bf16() -> bool:
    """Tell whether this processor multiplies bf16; without, PyTorch emulates it."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def rates() -> tuple[float, float]:
    """Return the memory rate in bytes/s (sum over 1 GB) and the fp32 matrix rate in operations/s, the best of three."""
    long, left, right = torch.zeros(2**28), torch.randn(512, WIDTH), torch.randn(WIDTH, 4096)
    memory = matrix = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        long.sum()
        memory = min(memory, time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(10):
            left @ right
        matrix = min(matrix, time.perf_counter() - start)
    return 4 * long.numel() / memory, 10 * 2 * 512 * WIDTH * 4096 / matrix


def measured(ways: dict[str, Search], queries: torch.Tensor, *, turns: int) -> dict[str, tuple[float, float]]:
    """Return the median seconds of one query and of a batch, by way, in turns."""
    single: dict[str, list[float]] = {name: [] for name in ways}
    batch: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns):
        for name, run in ways.items():
            for samples, some in ((single, queries[turn : turn + 1]), (batch, queries)):
                start = time.perf_counter()
                run(some)
                samples[name].append(time.perf_counter() - start)
    return {name: (median(single[name]), median(batch[name])) for name in ways}


def peers(rows: np.ndarray) -> dict[str, Search]:
    """Return faiss and plain PyTorch over one copy of all rows in memory, normalised, as float32."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    flat = faiss.IndexFlatIP(WIDTH)
    for start in range(0, len(rows), 50_000):
        flat.add(F.normalize(torch.from_numpy(np.array(rows[start : start + 50_000])).float(), dim=1).numpy())
    unit = torch.from_numpy(faiss.rev_swig_ptr(flat.get_xb(), len(rows) * WIDTH).reshape(-1, WIDTH))

    def plain(queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (F.normalize(queries, dim=1) @ unit.T).topk(K)

    def by_faiss(queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        similarities, indices = flat.search(F.normalize(queries, dim=1).numpy(), K)
        return torch.from_numpy(similarities), torch.from_numpy(indices)

    return {"peer: faiss IndexFlatIP, in memory": by_faiss, "peer: torch (q @ rows.T).topk, in memory": plain}


def run(num_rows: int, folder: Path, *, turns: int) -> None:
    """Measure one size and print its table."""
    write_rows(folder / "rows.npy", num_rows)
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    queries = torch.from_numpy(mixture(BATCH, clusters=num_rows // 50, seed=1_000_000))
    database = Database.of_array(rows)
    start = time.perf_counter()
    card = build_index(database, folder / "index", identity={"rows": num_rows})
    build_s = time.perf_counter() - start
    index = Index.open(folder / "index", identity={"rows": num_rows})
    truth = Neighbours(*top_k_of_blocks(queries, lambda: database.blocks(8192), k=K, num_rows=num_rows))
    ways: dict[str, Search] = {
        "exact, fp32, float16 on the disk": lambda q: search_exact(q, database, k=K),
        "index, 8-bit lists, exact similarities": lambda q: index.search(q, database, k=K),
    }
    if has_bf16():
        ways["exact, bf16, float16 on the disk"] = lambda q: search_exact(q, database, k=K, precision="bf16")
    ways |= peers(rows)
    recall = {name: recall_of(Neighbours(*way(queries)), truth) for name, way in ways.items()}
    found = measured(ways, queries, turns=turns)
    memory_rate, matrix_rate = rates()
    floors = [max(2 * num_rows * WIDTH / memory_rate, 2 * n * num_rows * WIDTH / matrix_rate) for n in (1, BATCH)]
    table = Table("", "1 query, ms", f"{BATCH} queries, ms", "recall@10", title=f"{num_rows:,} x {WIDTH}")
    for name, (single, batch) in found.items():
        table.add_row(name, f"{1e3 * single:.2f}", f"{1e3 * batch:.1f}", f"{recall[name]:.4f}")
    table.add_row("floor: float16 read once, or multiplied", f"{1e3 * floors[0]:.2f}", f"{1e3 * floors[1]:.1f}", "")
    console = Console(width=120)
    console.print(table)
    if not has_bf16():
        console.print("bf16: this processor has no bf16 instructions; not measured")
    size = (folder / "index" / "index.faiss").stat().st_size
    console.print(
        f"index: built in {build_s:.1f} s, {size / num_rows:.0f} bytes a row, {card['parameters']}, "
        f"recall@10 of its card {card['recall']['value']:.4f}"
    )
    console.print(
        f"memory {memory_rate / 1e9:.1f} GB/s, matrix {matrix_rate / 1e9:.0f} GFLOP/s, "
        f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    )


def main() -> None:
    """Measure the sizes asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for num_rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            run(num_rows, Path(folder), turns=arguments.turns)


if __name__ == "__main__":
    main()
