"""`foveal evaluate linear`: linear classifiers on random views, as published."""

from typing import Annotated

import typer

from foveal.cli.evaluate.classification import (
    DataOption,
    SplitOption,
    TestOption,
    TrainOption,
    report_classified,
)
from foveal.cli.evaluate.results import OutOption, SeedOption, check_results, unfinished_work
from foveal.cli.loading import EngineOption, FastOption, ModelOption, NumHeadsOption, PrecisionOption, open_model
from foveal.cli.terminal import progress_of


def linear(
    context: typer.Context,
    model: ModelOption,
    data: DataOption = None,
    train: TrainOption = None,
    test: TestOption = None,
    split: SplitOption = None,
    num_steps: Annotated[int, typer.Option(help="Steps of SGD.", min=1)] = 12_500,
    batch_size: Annotated[int, typer.Option(help="Images a step.", min=1)] = 128,
    seed: SeedOption = 0,
    out: OutOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
    num_heads: NumHeadsOption = None,
) -> None:
    """Train a grid of linear classifiers on new views in every step; the best on the test images is reported."""
    from foveal.evaluate.layouts.classification import open_classification
    from foveal.evaluate.linear import LinearSettings, run

    check_results(out)
    settings = LinearSettings(num_steps=num_steps, batch_size=batch_size, seed=seed)
    loaded = open_model(model, engine=engine, precision=precision, fast=fast, num_heads=num_heads)
    found = open_classification(data, train=train, test=test, split=split)
    with unfinished_work(context, model=loaded, data_hash=found.hash, out=out) as folder:
        with progress_of("training") as trained, progress_of("testing") as progress:
            measures = run(
                loaded,
                found.train,
                found.test,
                settings=settings,
                folder=folder,
                progress=progress,
                trained=trained,
            )
        report_classified(
            context,
            measures,
            protocol=settings.protocol,
            model=loaded,
            data=found,
            out=out,
            title="Linear classifiers on random views",
        )
