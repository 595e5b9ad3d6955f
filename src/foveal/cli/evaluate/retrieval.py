"""`foveal evaluate retrieval`: which images of a database does a query find first."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.evaluate.results import (
    BatchSizeOption,
    OutOption,
    SeedOption,
    check_results,
    report_results,
    skip_finished,
)
from foveal.cli.loading import (
    EngineOption,
    FastOption,
    FitOption,
    ModelOption,
    NumHeadsOption,
    PrecisionOption,
    SizeOption,
    open_model,
    parse_size,
)
from foveal.cli.terminal import progress_of
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.evaluate.results import Measure


def retrieval(
    context: typer.Context,
    model: ModelOption,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Revisited Oxford or Paris as distributed (gnd_*.pkl beside jpg/); or images with groups as labels, "
            "which --queries search, or each the others.",
        ),
    ],
    queries: Annotated[
        str | None, typer.Option("--queries", help="Images with groups as labels that search --data.")
    ] = None,
    whole_queries: Annotated[
        bool, typer.Option("--whole-queries", help="Revisited: show queries whole, not their boxes.")
    ] = False,
    k: Annotated[
        list[int] | None, typer.Option("--k", min=1, help="Of precision or recall; repeatable.  [default: 1 5 10]")
    ] = None,
    size: SizeOption = None,
    fit: FitOption = "crop",
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = 32,
    out: OutOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
    num_heads: NumHeadsOption = None,
) -> None:
    """Rank a database by similarity to each query: revisited Oxford and Paris, or any images in groups."""
    from foveal.evaluate.layouts.revisited import is_revisited, open_revisited
    from foveal.evaluate.retrieval import KS, run_groups, run_revisited
    from foveal.images.imageset import ImageSet

    revisited = is_revisited(data)
    if revisited and queries is not None:
        raise FovealError(f"--queries has no effect beside {data}, which names its own; leave it out")
    if whole_queries and not revisited:
        raise FovealError(f"--whole-queries has no effect: {data} holds no gnd_*.pkl or .json with boxes; leave it out")
    pixels = parse_size(size)
    check_results(out)
    loaded = open_model(model, engine=engine, precision=precision, fast=fast, num_heads=num_heads, size=pixels, fit=fit)
    measures: list[Measure]
    with progress_of("extracting") as progress:
        if revisited:
            truth = open_revisited(data)
            name, data_hash = truth.name, truth.hash
            skip_finished(context, model=loaded, data_hash=data_hash, out=out)
            title = f"{name}, {len(truth.queries)} queries, {len(truth.database)} images"
            measures = run_revisited(
                loaded,
                truth,
                crop_queries=not whole_queries,
                size=pixels,
                fit=fit,
                ks=k or KS,
                batch_size=batch_size,
                seed=seed,
                progress=progress,
            )
        else:
            database = ImageSet.open(data)
            searching = database if queries is None else ImageSet.open(queries)
            name = Path(data).resolve().name
            data_hash = hashlib.sha256(f"{searching.hash} {database.hash}".encode()).hexdigest()
            skip_finished(context, model=loaded, data_hash=data_hash, out=out)
            title = f"retrieval, {len(searching)} queries, {len(database)} images"
            measures = run_groups(
                loaded,
                searching,
                None if queries is None else database,
                size=pixels,
                fit=fit,
                ks=k or KS,
                batch_size=batch_size,
                seed=seed,
                progress=progress,
            )
    variant = [
        text for text, given in (("whole queries", whole_queries), (f"{size} {fit}", size or fit != "crop")) if given
    ]
    report_results(
        context,
        measures,
        protocol=", ".join(["retrieval", *variant]),
        model=loaded,
        data=name,
        data_hash=data_hash,
        out=out,
        title=title,
    )
