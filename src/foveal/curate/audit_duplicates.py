"""Near-copies among the images of an audit: those whose perceptual hashes are near, or joined by a chain of such."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from foveal.curate.perceptual import first_of_equal, near_components, num_bands
from foveal.curate.runner import Runner
from foveal.curate.stage import Stage, read_stage
from foveal.curate.unionfind import UnionFind

HASHES, LINKS = "hashes", "links"


def near_copies(
    stage: Stage, runner: Runner, rows: np.ndarray, codes: np.ndarray, areas: np.ndarray
) -> Iterator[tuple[int, int, int]]:
    """Yield the images that are near-copies of one that is kept: of every component the largest, of these the first.

    Args:
        stage: the audit; its setting max_distance is in bits.
        runner: where the pieces of the search run.
        rows: (n,) int64, the images, ascending.
        codes: (n, bytes) uint8, their hashes.
        areas: (n,) their pixels.

    Yields:
        The image, the one it is a copy of, and the bits in which their hashes differ; ascending.
    """
    first = first_of_equal(codes)  # equal hashes need no search, which would find all pairs of them
    distinct = np.unique(first)
    _save_hashes(stage, codes[distinct])
    bands = num_bands(codes, stage.settings["max_distance"])
    runner.run(link_band, stage, LINKS, bands)
    components = UnionFind(len(rows))
    components.union(np.arange(len(rows)), first)
    for band in range(bands):
        links = stage.load(LINKS, band)["links"]
        components.union(distinct[links[:, 0]], distinct[links[:, 1]])
    kept = _largest(components.labels(), areas)
    for place in np.flatnonzero(kept != np.arange(len(rows))):
        distance = np.bitwise_count(codes[place] ^ codes[kept[place]]).sum()
        yield int(rows[place]), int(rows[kept[place]]), int(distance)


def _save_hashes(stage: Stage, codes: np.ndarray) -> None:
    """Write what is searched; links of other hashes, of a shard that was audited again since, are removed."""
    if not stage.missing(HASHES, 1) and np.array_equal(stage.load(HASHES, 0)["codes"], codes):
        return
    for path in stage.path(LINKS, 0).parent.glob("*.safetensors"):
        path.unlink()
    stage.save(HASHES, 0, {"codes": codes})


def link_band(folder: Path, band: int) -> None:
    """Join the hashes that one piece finds to be near; one link for each that is joined, not one for each pair."""
    stage = read_stage(folder)
    codes = stage.load(HASHES, 0)["codes"]
    labels = near_components(codes, stage.settings["max_distance"], [band])
    linked = np.flatnonzero(labels != np.arange(len(codes)))
    stage.save(LINKS, band, {"links": np.stack([linked, labels[linked]], axis=1)})


def _largest(labels: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Return for each place the one of its component with the most pixels, the first of equals."""
    order = np.lexsort((np.arange(len(labels)), -areas, labels))
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    counts = np.diff(starts, append=len(labels))
    best = np.empty_like(labels)
    best[order] = np.repeat(order[starts], counts)
    return best
