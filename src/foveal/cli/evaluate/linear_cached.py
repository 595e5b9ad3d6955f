"""`foveal evaluate linear-cached`: linear classifiers on features computed once."""

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


def linear_cached(
    context: typer.Context,
    model: ModelOption,
    data: DataOption = None,
    train: TrainOption = None,
    test: TestOption = None,
    split: SplitOption = None,
    n_per_class: NPerClassOption = None,
    n_tries: NTriesOption = None,
    num_steps: Annotated[int, typer.Option(help="Steps of 128 images.", min=1)] = 1250,
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = 32,
    out: OutOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
    num_heads: NumHeadsOption = None,
) -> None:
    """Train a grid of linear classifiers on fixed views, choose one on a tenth of train, and classify."""
    from foveal.evaluate.layouts.classification import open_classification
    from foveal.evaluate.linear_cached import NUM_STEPS, run

    check_results(out)
    few_shot = few_shot_of(n_per_class, n_tries)
    if few_shot is not None:
        few_shot.check_choice()
    loaded = open_model(model, engine=engine, precision=precision, fast=fast, num_heads=num_heads)
    found = open_classification(data, train=train, test=test, split=split)
    with unfinished_work(context, model=loaded, data_hash=found.hash, out=out) as folder:
        with progress_of("extracting") as progress, progress_of("training") as trained:
            measures = run(
                loaded,
                found.train,
                found.test,
                num_steps=num_steps,
                few_shot=few_shot,
                seed=seed,
                batch_size=batch_size,
                folder=folder,
                progress=progress,
                trained=trained,
            )
        report_classified(
            context,
            measures,
            protocol="linear-cached" if num_steps == NUM_STEPS else f"linear-cached, {num_steps} steps",
            model=loaded,
            data=found,
            out=out,
            title="Linear classifiers on fixed views",
        )
