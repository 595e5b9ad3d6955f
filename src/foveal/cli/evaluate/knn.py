"""`foveal evaluate knn`: how good are the features, without training anything."""

from typing import Annotated

import typer

from foveal.cli.evaluate.classification import (
    DataOption,
    NPerClassOption,
    NTriesOption,
    SplitOption,
    TestOption,
    TrainOption,
    few_shot_of,
    report_classified,
)
from foveal.cli.evaluate.results import BatchSizeOption, OutOption, SeedOption, check_results, unfinished_work
from foveal.cli.loading import EngineOption, FastOption, ModelOption, NumHeadsOption, PrecisionOption, open_model
from foveal.cli.terminal import progress_of


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
    n_per_class: NPerClassOption = None,
    n_tries: NTriesOption = None,
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
    from foveal.evaluate.knn import KS, run, run_pixels
    from foveal.evaluate.layouts.classification import open_classification

    check_results(out)
    few_shot = few_shot_of(n_per_class, n_tries)
    loaded = open_model(model, engine=engine, precision=precision, fast=fast, num_heads=num_heads)
    found = open_classification(data, train=train, test=test, split=split)
    ks = k or KS
    with unfinished_work(context, model=loaded, data_hash=found.hash, out=out) as folder:
        with progress_of("extracting") as progress:
            measures = run(
                loaded,
                found.train,
                found.test,
                ks=ks,
                few_shot=few_shot,
                seed=seed,
                batch_size=batch_size,
                folder=folder,
                progress=progress,
            )
        if pixels:
            measures += run_pixels(found.train, found.test, ks=ks, few_shot=few_shot, seed=seed)
        report_classified(context, measures, protocol="knn", model=loaded, data=found, out=out, title="kNN")
