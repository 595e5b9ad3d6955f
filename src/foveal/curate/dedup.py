"""Copy detection in feature space: one image of every group of copies stays, and evaluation images are kept out.

Images are the nodes of a graph; each has edges to its k most similar others, as far as they reach a similarity. Of each
connected component one image is kept. Images are dropped that lie in one component with an evaluation image in a graph
of lower similarity, over the whole pool and those images.

Source: arXiv 2304.07193, appendix A: k = 64 and 0.6, then 0.45 against the evaluation sets. Differences: rows that are
equal to the bit are joined first and searched for once, so that they do not use up each other's neighbours; the second
graph holds the whole pool instead of what is left of it, so that an image also goes whose copy resembles an evaluation
image; and each image is compared with all evaluation images, not with its k nearest.

    STAGE/review.parquet   images of components above the size limit: kept, but to be looked at
    STAGE/shards/copies/   per shard a hash of each row
    STAGE/shards/distinct/ rows without their equals, and the pairs of equals
    STAGE/shards/pairs/    per shard the edges of its rows
    STAGE/shards/truth/, centres/, homes/, order/, lists/  of a search by lists
    STAGE/shards/held_out/ per shard the most similar evaluation image of its rows

Shapes: N rows, D width, k neighbours.
"""

import functools
import hashlib
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from foveal.curate.dedup_copies import COPIES, DISTINCT, find_distinct, hash_rows, rows_of
from foveal.curate.dedup_groups import find_groups, find_held_out, keep_order
from foveal.curate.dedup_outcome import write_outcome
from foveal.curate.dedup_search import HELD_OUT, REFERENCES, find_pairs, search_held_out, searched_similarity
from foveal.curate.pairs import DEFAULT_MEMORY_BYTES, block_rows, least_bits
from foveal.curate.pairs_lists import LISTS
from foveal.curate.runner import Runner
from foveal.curate.stage import SHARDS, Stage, open_stage
from foveal.curate.vectors import Vectors, check_same_descriptor
from foveal.errors import FovealError
from foveal.features.batches import Progress
from foveal.images.imageset import ImageSet

Search = Literal["auto", "exact", "lists", "ivfpq"]
Keep = Literal["largest", "first", "best"]
KeepOutRule = Literal["component", "direct"]

_EXACT_UP_TO = 1_000_000  # rows, by `auto`


@dataclass(frozen=True)
class DedupSettings:
    """What decides which images are copies, and which of them stays.

    Attributes:
        similarity: the least cosine of an edge.
        neighbours: k, edges that each row has at most.
        keep: of a component the largest (pixels, then bytes, then the first), the first, or the best by a quality.
        search: how pairs are found: "exact" compares all rows, "lists" each with the lists nearest to it
            (`pairs_lists`), "ivfpq" asks an index of faiss (`pairs_ivfpq`); "auto" takes "exact" up to a million
            rows, else "lists".
        min_recall: the least share of the true pairs that a search must find, where it is not exact.
        shard_size: rows of one task.
        memory_bytes: of a worker; changes nothing but the time.
        keep_out_similarity: the least cosine of an edge of the graph with the evaluation images.
        keep_out_rule: drop whole components, or only images that are linked directly.
        component_limit: of components with more images only those that are linked directly are dropped.
    """

    similarity: float = 0.6
    neighbours: int = 64
    keep: Keep = "largest"
    search: Search = "auto"
    min_recall: float = 0.99
    shard_size: int = 65_536
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    keep_out_similarity: float = 0.45
    keep_out_rule: KeepOutRule = "component"
    component_limit: int = 10_000

    def __post_init__(self) -> None:
        for name, allowed in (("keep", Keep), ("search", Search), ("keep_out_rule", KeepOutRule)):
            if getattr(self, name) not in get_args(allowed):
                raise FovealError(f"{name}={getattr(self, name)!r}; choose {', '.join(get_args(allowed))}")
        for name in ("similarity", "keep_out_similarity"):
            if not 0.05 <= getattr(self, name) <= 1:
                raise FovealError(f"{name}={getattr(self, name)}; a cosine, choose from 0.05 to 1")
        for name in ("neighbours", "shard_size", "component_limit", "memory_bytes"):
            if getattr(self, name) < 1:
                raise FovealError(f"{name}={getattr(self, name)}; it must be at least 1")
        if not 0 < self.min_recall <= 1:
            raise FovealError(f"min_recall={self.min_recall}; choose above 0, up to 1")


def run_dedup(
    vectors: Vectors,
    *,
    keep_out: Vectors | None = None,
    quality: ImageSet | None = None,
    out: str | Path,
    settings: DedupSettings | None = None,
    runner: Runner | None = None,
    progress: Progress | None = None,
) -> Stage:
    """Remove copies from a pool, and what resembles evaluation images; an interrupted run goes on.

    Args:
        vectors: of the pool.
        keep_out: of evaluation images, by the same model.
        quality: images with the columns uri and quality, for keep="best"; higher is better.
        out: folder of the stage.
        settings: None takes the defaults.
        runner: where shards run; None is this process.
        progress: called with (shards done, shards in all) of each step.

    Returns:
        The finished stage. Its removed images have the reason "keep-out" or "duplicate".

    Raises:
        FovealError: vectors of different models, NaN, too little memory, a recall below the least, no quality to
            choose by, or a folder that is something else or cannot be written.
    """
    settings, runner = settings or DedupSettings(), runner or Runner()
    if keep_out is not None:
        check_same_descriptor(vectors, keep_out)
    order = keep_order(vectors, settings.keep, quality)
    inputs, sources = {"vectors": vectors.hash}, vectors.sources()
    if keep_out is not None:
        inputs[REFERENCES] = keep_out.hash
        sources.update(keep_out.sources(REFERENCES))
    if quality is not None:
        inputs["quality"] = hashlib.sha256(order.tobytes()).hexdigest()
    stage = open_stage(out, "dedup", settings=_deciding(settings, vectors), inputs=inputs, sources=sources)
    if stage.summary is not None:
        return stage
    num_rows, size = vectors.num_rows, settings.shard_size
    least_bits(searched_similarity(stage), vectors.width)  # refuses what cannot be searched for
    block_rows(min(num_rows, size), vectors.width, 1, settings.memory_bytes)  # or cannot be held

    runner.run(hash_rows, stage, COPIES, -(-num_rows // size), progress=progress)
    runner.run(find_distinct, stage, DISTINCT, 1)
    num_shards, facts = find_pairs(stage, runner, memory_bytes=settings.memory_bytes, progress=progress)
    held_out = None
    if keep_out is not None:
        task = functools.partial(search_held_out, memory_bytes=settings.memory_bytes)
        num_held_out = -(-len(rows_of(stage)) // size)
        runner.run(task, stage, HELD_OUT, num_held_out, progress=progress)
        held_out = find_held_out(stage, num_rows, num_shards, num_held_out)
    groups = find_groups(stage, num_rows, num_shards)
    facts = {"search": facts}
    write_outcome(stage, vectors, keep_out, groups=groups, held_out=held_out, order=order, facts=facts)
    shutil.rmtree(stage.folder / SHARDS / LISTS, ignore_errors=True)  # as large as the vectors, and of no more use
    return stage


def _deciding(settings: DedupSettings, vectors: Vectors) -> dict[str, Any]:
    """Return the settings that decide the result, with the search that "auto" chose."""
    found = asdict(settings)
    del found["memory_bytes"]
    if settings.search == "auto":
        found["search"] = "exact" if vectors.num_rows <= _EXACT_UP_TO else "lists"
    return found
