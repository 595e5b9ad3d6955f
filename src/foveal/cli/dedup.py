"""`foveal dedup`: one image of every group of copies stays, and evaluation images are kept out."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from foveal.cli.curation import EngineOption, RayAddressOption, StageOption, WorkersOption, make_runner, print_stage
from foveal.cli.terminal import progress_of


def dedup(
    store: Annotated[
        Path, typer.Argument(help="Feature store of the pool, by a model that tells copies.", exists=True)
    ],
    out: StageOption,
    keep_out: Annotated[
        Path | None, typer.Option(help="Feature store of evaluation images, by the same model.", exists=True)
    ] = None,
    token: Annotated[str | None, typer.Option(help="Which vectors: cls, mean, cls.layer5.  [default: cls]")] = None,
    similarity: Annotated[float, typer.Option(help="Least cosine of copies.")] = 0.6,
    neighbours: Annotated[int, typer.Option(help="Edges that an image has at most, to the most similar.")] = 64,
    keep: Annotated[
        Literal["largest", "first", "best"], typer.Option(help="Which of a group stays; best needs --quality.")
    ] = "largest",
    quality: Annotated[
        Path | None, typer.Option(help="Image set with a column quality of every image; higher is better.", exists=True)
    ] = None,
    search: Annotated[
        Literal["auto", "exact", "lists", "ivfpq"],
        typer.Option(help="How copies are found; by itself exact up to a million."),
    ] = "auto",
    min_recall: Annotated[float, typer.Option(help="Least share of the true pairs found, where not exact.")] = 0.99,
    keep_out_similarity: Annotated[float, typer.Option(help="Least cosine of links to evaluation images.")] = 0.45,
    keep_out_rule: Annotated[
        Literal["component", "direct"],
        typer.Option(help="Drop whatever is linked to evaluation images, or only what is linked directly."),
    ] = "component",
    component_limit: Annotated[
        int, typer.Option(help="Larger components are not dropped whole, but listed in review.parquet.")
    ] = 10_000,
    shard_size: Annotated[int, typer.Option(help="Images of one task.")] = 65_536,
    memory: Annotated[float, typer.Option(help="GiB of each worker, about.")] = 2.0,
    workers: WorkersOption = 1,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
) -> None:
    """Find copies by their features, keep one image of each group, and keep evaluation images out."""
    from foveal.curate.dedup import DedupSettings, run_dedup
    from foveal.curate.vectors import Vectors
    from foveal.images.imageset import ImageSet

    settings = DedupSettings(
        similarity=similarity,
        neighbours=neighbours,
        keep=keep,
        search=search,
        min_recall=min_recall,
        shard_size=shard_size,
        memory_bytes=int(memory * 2**30),
        keep_out_similarity=keep_out_similarity,
        keep_out_rule=keep_out_rule,
        component_limit=component_limit,
    )
    runner = make_runner(workers, engine, ray_address)
    with progress_of("looking for copies") as progress:
        stage = run_dedup(
            Vectors(store, token=token),
            keep_out=None if keep_out is None else Vectors(keep_out, token=token),
            quality=None if quality is None else ImageSet.open(quality),
            out=out,
            settings=settings,
            runner=runner,
            progress=progress,
        )
    assert stage.summary is not None
    print_stage(out, stage.summary)
