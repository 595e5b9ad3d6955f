"""`foveal cluster`: images of a feature store in levels of clusters."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.curation import EngineOption, RayAddressOption, StageOption, WorkersOption, make_runner
from foveal.cli.terminal import progress_of
from foveal.errors import FovealError


def cluster(
    store: Annotated[Path, typer.Argument(help="Feature store, or an .npy file of vectors.", exists=True)],
    out: StageOption,
    levels: Annotated[str, typer.Option(help="Clusters of each level, falling, such as 5000,500,50.")],
    rows: Annotated[
        Path | None, typer.Option(help="Rows to cluster, such as rows.npy of foveal dedup.", exists=True)
    ] = None,
    token: Annotated[str | None, typer.Option(help="Which vectors: cls, mean, cls.layer5.  [default: cls]")] = None,
    resampling: Annotated[
        str, typer.Option(help="Times that a level is clustered again from resampled points; one number, or one each.")
    ] = "10",
    resampled: Annotated[
        str, typer.Option(help="Points of each cluster taken then; 0 is half of their mean number.")
    ] = "0",
    steps: Annotated[int, typer.Option(help="Steps of k-means at most, in memory.")] = 50,
    full_steps: Annotated[int, typer.Option(help="Steps at most over all rows, where memory does not hold them.")] = 10,
    tolerance: Annotated[float, typer.Option(help="Stop when the inertia falls by less than this share.")] = 1e-4,
    rows_per_cluster: Annotated[int, typer.Option(help="Rows of the first sample for each cluster.")] = 256,
    memory: Annotated[float, typer.Option(help="GiB of points in memory.")] = 4.0,
    shard_rows: Annotated[int, typer.Option(help="Rows of a shard.")] = 65_536,
    seed: Annotated[int, typer.Option(help="Of the sample and of the start.", min=0)] = 0,
    workers: WorkersOption = 1,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
) -> None:
    """Cluster images by their features, the clusters again, and so on: groups of all sizes, evenly spread."""
    from foveal.curate.cluster import ClusterSettings, run_cluster
    from foveal.curate.vectors import Vectors

    settings = ClusterSettings(
        levels=_numbers("--levels", levels),
        resampling=_numbers("--resampling", resampling),
        resampled=_numbers("--resampled", resampled),
        steps=steps,
        full_steps=full_steps,
        tolerance=tolerance,
        rows_per_cluster=rows_per_cluster,
        memory_bytes=int(memory * 2**30),
        shard_rows=shard_rows,
        seed=seed,
    )
    runner = make_runner(workers, engine, ray_address)
    with progress_of("clustering") as progress:
        stage = run_cluster(
            Vectors(store, token=token, rows=rows), out=out, settings=settings, runner=runner, progress=progress
        )
    summary = stage.summary or {}
    typer.echo(f"wrote {out}: {summary['num_kept']:,} images, mean cosine to the centroid {summary['mean_similarity']}")
    for number, level in enumerate(summary["levels"], 1):
        typer.echo(
            f"level {number}: {level['clusters']:,} clusters of {level['smallest']:,} to {level['largest']:,} images, "
            f"median {level['median']:g}, {level['empty']:,} empty"
        )


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise FovealError(f"{option} {text}; write whole numbers separated by commas, such as 5000,500,50") from error
