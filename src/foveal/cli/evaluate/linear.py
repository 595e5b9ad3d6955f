"""`foveal evaluate linear`: linear classifiers on random views, as published."""

from typing import Annotated

import typer

from foveal.cli.evaluate.classification import (
    DataOption,
    SplitOption,
    TestOption,
    TrainOption,
)
from foveal.cli.evaluate.results import OutOption, SeedOption, check_results, report_results, unfinished_work
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
    also: Annotated[
        list[str] | None,
        typer.Option(help="NAME=SOURCE: a further test set, or JSON labels of the test images; repeatable."),
    ] = None,
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
    from foveal.evaluate.other_tests import open_other

    check_results(out)
    settings = LinearSettings(num_steps=num_steps, batch_size=batch_size, seed=seed)
    loaded = open_model(model, engine=engine, precision=precision, fast=fast, num_heads=num_heads)
    found = open_classification(data, train=train, test=test, split=split)
    others = [open_other(text, found.train, found.test) for text in also or ()]
    with unfinished_work(context, model=loaded, data_hash=found.hash, out=out) as folder:
        with progress_of("training") as trained, progress_of("testing") as progress:
            rows = run(
                loaded,
                found.train,
                found.test,
                settings=settings,
                others=others,
                folder=folder,
                progress=progress,
                trained=trained,
            )
        title = f"Linear classifiers on random views, {len(found.train)} train images"
        names = [(found.name, found.hash), *((one.name, one.hash) for one in others)]
        for measures, (name, data_hash) in zip(rows, names, strict=True):
            report_results(
                context,
                measures,
                protocol=settings.protocol,
                model=loaded,
                data=name,
                data_hash=data_hash,
                out=out,
                title=f"{title}, {name}",
            )
