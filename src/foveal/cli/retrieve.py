"""`foveal retrieve`: the images of a pool that resemble those of query sets."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from foveal.cli.curation import EngineOption, RayAddressOption, StageOption, WorkersOption, make_runner, print_stage
from foveal.cli.terminal import progress_of
from foveal.errors import FovealError


def retrieve(
    pool: Annotated[Path, typer.Argument(help="Feature store of the pool.", exists=True)],
    queries: Annotated[
        list[str], typer.Option(help="Feature store of a query set, or NAME=STORE; may be given again.")
    ],
    out: StageOption,
    clusters: Annotated[
        Path | None, typer.Option(help="Of the pool, by foveal cluster; for retrieval by clusters.", exists=True)
    ] = None,
    rows: Annotated[
        Path | None, typer.Option(help="Rows of the pool to search, such as rows.npy of foveal dedup.", exists=True)
    ] = None,
    token: Annotated[str | None, typer.Option(help="Which vectors: cls, mean, cls.layer5.  [default: cls]")] = None,
    mode: Annotated[
        Literal["auto", "sample", "cluster"],
        typer.Option(help="sample: nearest images of each query; cluster: images of their clusters; auto: by size."),
    ] = "auto",
    large: Annotated[int, typer.Option(help="Queries above which auto goes by image.", min=0)] = 1_000_000,
    per_query: Annotated[int, typer.Option(help="Images for each query, sample-based.", min=1)] = 4,
    candidates: Annotated[
        int, typer.Option(help="Neighbours looked at for each query, as a multiple of --per-query.", min=1)
    ] = 4,
    per_cluster: Annotated[int, typer.Option(help="Images of each cluster, cluster-based.", min=1)] = 10_000,
    min_queries: Annotated[int, typer.Option(help="Take clusters with more queries than this.", min=0)] = 3,
    cap: Annotated[int, typer.Option(help="Images for one query set, cluster-based.", min=1)] = 1_000_000,
    level: Annotated[int, typer.Option(help="Of the clusters; 1 is the finest.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Of the choice within clusters.", min=0)] = 0,
    query_rows: Annotated[int, typer.Option(help="Queries in a shard.", min=1)] = 16_384,
    pool_rows: Annotated[int, typer.Option(help="Rows of the pool in a shard.", min=1)] = 1_048_576,
    workers: WorkersOption = 1,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
) -> None:
    """Keep the images of a pool that query sets ask for, each once, with the query it was taken for."""
    from foveal.curate.retrieve import RetrieveSettings, run_retrieve
    from foveal.curate.vectors import Vectors

    settings = RetrieveSettings(
        mode=mode,
        large=large,
        per_query=per_query,
        candidates=candidates,
        per_cluster=per_cluster,
        min_queries=min_queries,
        cap=cap,
        level=level,
        seed=seed,
        query_rows=query_rows,
        pool_rows=pool_rows,
    )
    stores = {name: Vectors(path, token=token) for name, path in _named(queries).items()}
    with progress_of("retrieving") as progress:
        stage = run_retrieve(
            Vectors(pool, token=token, rows=rows),
            stores,
            out=out,
            clusters=clusters,
            settings=settings,
            runner=make_runner(workers, engine, ray_address),
            progress=progress,
        )
    summary = stage.summary or {}
    print_stage(out, summary)
    for name, one in summary["query_sets"].items():
        missing = f", {one['missing']:,} fewer than asked for" if one["missing"] else ""
        typer.echo(
            f"{name}: {one['retrieved']:,} images for {one['queries']:,} queries, {one['method']}-based{missing}"
        )


def _named(options: list[str]) -> dict[str, Path]:
    """Return query sets by name; that of a store without one is its folder's."""
    found: dict[str, Path] = {}
    for option in options:
        name, equals, place = option.partition("=")
        path = Path(place) if equals and not Path(option).exists() else Path(option)
        name = name if path != Path(option) else path.name
        if not path.exists():
            raise FovealError(f"--queries {option}: {path} does not exist; give a feature store, or NAME=STORE")
        if name in found:
            raise FovealError(f"two query sets are called {name}; name them, --queries NAME=STORE")
        found[name] = path
    return found
