"""`foveal evaluate knn`: how good are the features, without training anything."""

from typing import Annotated

import typer

from foveal.cli.evaluate.classification import (
    DataOption,
    SplitOption,
    TestOption,
    TrainOption,
    report_classified,
)
from foveal.cli.evaluate.results import BatchSizeOption, OutOption, SeedOption, check_results
from foveal.cli.loading import EngineOption, FastOption, ModelOption, NumHeadsOption, PrecisionOption, open_model
from foveal.cli.terminal import progress_of
from foveal.errors import FovealError


def knn(
    context: typer.Context,
    model: ModelOption,
    data: DataOption = None,
    train: TrainOption = None,
    test: TestOption = None,
    split: SplitOption = None,
    k: Annotated[
        list[int] | None, typer.Option("--k", min=1, help="Neighbours; repeatable.  [default: 10 20 100 200]")
    ] = None,
    n_per_class: Annotated[int | None, typer.Option(help="Few-shot: train images of each class.")] = None,
    n_tries: Annotated[int | None, typer.Option(help="Few-shot: number of draws.  [default: 5]")] = None,
    pixels: Annotated[bool, typer.Option("--pixels", help="Add the raw-pixel baseline.")] = False,
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = 32,
    out: OutOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
    num_heads: NumHeadsOption = None,
) -> None:
    """Classify labelled images by their nearest neighbours in feature space."""
    if n_tries is not None and n_per_class is None:
        raise FovealError("--n-tries has no effect without --n-per-class; add that, or leave it out")
    from foveal.evaluate.knn import KS, run, run_pixels
    from foveal.evaluate.layouts.classification import open_classification

    check_results(out)
    loaded = open_model(model, engine=engine, precision=precision, fast=fast, num_heads=num_heads)
    found = open_classification(data, train=train, test=test, split=split)
    ks, tries = k or KS, 5 if n_tries is None else n_tries
    with progress_of("extracting") as progress:
        measures = run(
            loaded,
            found.train,
            found.test,
            ks=ks,
            n_per_class=n_per_class,
            n_tries=tries,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )
    if pixels:
        measures += run_pixels(found.train, found.test, ks=ks, n_per_class=n_per_class, n_tries=tries, seed=seed)
    report_classified(context, measures, protocol="knn", model=loaded, data=found, out=out, title="kNN")
