"""`foveal evaluate logistic`: logistic regression on frozen features."""

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


def logistic(
    context: typer.Context,
    model: ModelOption,
    data: DataOption = None,
    train: TrainOption = None,
    test: TestOption = None,
    split: SplitOption = None,
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = 32,
    out: OutOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
    num_heads: NumHeadsOption = None,
) -> None:
    """Fit a logistic regression for each of 45 penalties, choose one on a tenth of train, and classify."""
    from foveal.evaluate.layouts.classification import open_classification
    from foveal.evaluate.logistic import CS, run

    check_results(out)
    loaded = open_model(model, engine=engine, precision=precision, fast=fast, num_heads=num_heads)
    found = open_classification(data, train=train, test=test, split=split)
    done = 0
    with progress_of("extracting") as progress, progress_of("fitting") as fitting:

        def fitted(*_: object) -> None:
            nonlocal done
            done += 1
            fitting(done, len(CS))

        measures = run(
            loaded, found.train, found.test, seed=seed, batch_size=batch_size, progress=progress, fitted=fitted
        )
    report_classified(
        context, measures, protocol="logistic", model=loaded, data=found, out=out, title="Logistic regression"
    )
