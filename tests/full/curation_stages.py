"""The stages of a curation on vectors, as test_ray_curation.py runs them here and on a cluster."""

from pathlib import Path

from foveal.curate.cluster import ClusterSettings, run_cluster
from foveal.curate.dedup import DedupSettings, run_dedup
from foveal.curate.retrieve import RetrieveSettings, run_retrieve
from foveal.curate.runner import Runner
from foveal.curate.sample import SampleSettings, run_sample
from foveal.curate.vectors import Vectors


def run_stages(pool: Path, seeds: Path, out: Path, runner: Runner) -> None:
    """Deduplicate, by exact search and by lists, cluster, retrieve both ways and sample, in many small shards."""
    vectors, queries = Vectors(pool), Vectors(seeds)
    exact = DedupSettings(search="exact", shard_size=500)
    kept = run_dedup(vectors, keep_out=queries, out=out / "dedup", settings=exact, runner=runner)
    lists = DedupSettings(search="lists", shard_size=3000, min_recall=0.9)
    run_dedup(vectors, out=out / "dedup-lists", settings=lists, runner=runner)
    left = Vectors(pool, rows=kept.rows)
    levels = ClusterSettings(levels=(60, 9), resampling=(1,), rows_per_cluster=20, shard_rows=2000, full_steps=2)
    clusters = run_cluster(left, out=out / "clusters", settings=levels, runner=runner).folder
    nearest = RetrieveSettings(mode="sample", query_rows=50, pool_rows=3000)
    run_retrieve(left, {"seeds": queries}, out=out / "nearest", settings=nearest, runner=runner)
    groups = RetrieveSettings(mode="cluster", min_queries=1, per_cluster=100)
    retrieved = run_retrieve(
        left, {"seeds": queries}, out=out / "retrieved", clusters=clusters, settings=groups, runner=runner
    )
    run_sample(clusters, out=out / "set", settings=SampleSettings(target=200), among=retrieved.folder)
