"""Exact kNN of many queries against many rows: time beside its floor, and memory beyond the features.

    python benchmarks/knn.py                                    # 50,000 queries, 1,281,167 rows: ImageNet-1k
    python benchmarks/knn.py --queries 1000 --rows 100000       # a part

The floor is 2 * queries * rows * width operations at the rate of a large matrix product, measured in the same run: in
float64, in which similarities are exact, and in float32, in which `top_k` looks for candidates. Features are drawn
from a normal distribution: how they lie changes neither time nor memory. Memory is the peak of the process less what
it took before the search, so the features themselves are not in it.
"""

import argparse
import resource
import time

import torch
from rich.console import Console
from rich.table import Table

from foveal.features.neighbours import top_k

_SIDE = 2048
_REPEATS = 5


def matrix_rate(dtype: torch.dtype, width: int) -> float:
    """Return the best rate of a product (side, width) by (width, side), operations a second."""
    left, right = torch.randn(_SIDE, width, dtype=dtype), torch.randn(width, 4 * _SIDE, dtype=dtype)
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return 2 * _SIDE * 4 * _SIDE * width / min(times)


def peak_mb() -> float:
    """Return the largest memory that this process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--k", type=int, default=200)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    rates = {name: matrix_rate(getattr(torch, name), options.width) for name in ("float64", "float32")}
    database = torch.randn(options.rows, options.width, generator=generator)
    queries = torch.randn(options.queries, options.width, generator=generator)
    before, start = peak_mb(), time.perf_counter()
    top_k(queries, database, k=options.k)
    taken = time.perf_counter() - start
    operations = 2 * options.queries * options.rows * options.width
    table = Table("queries", "rows", "seconds", *(f"floor {name}" for name in rates), "memory beyond features, MB")
    floors = [f"{operations / rate:.1f} s ({taken * rate / operations:.1f} x)" for rate in rates.values()]
    table.add_row(f"{options.queries:,}", f"{options.rows:,}", f"{taken:.1f}", *floors, f"{peak_mb() - before:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
