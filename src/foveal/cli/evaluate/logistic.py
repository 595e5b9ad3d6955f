"""`foveal evaluate logistic`: logistic regression on frozen features."""

from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from foveal.evaluate.softmax_regression import Fit


def logistic(
    context: typer.Context,
    model: ModelOption,
    data: DataOption = None,
    train: TrainOption = None,
    test: TestOption = None,
    split: SplitOption = None,
    n_per_class: NPerClassOption = None,
    n_tries: NTriesOption = None,
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
    few_shot = few_shot_of(n_per_class, n_tries)
    if few_shot is not None:
        few_shot.check_choice()
    loaded = open_model(model, engine=engine, precision=precision, fast=fast, num_heads=num_heads)
    found = open_classification(data, train=train, test=test, split=split)
    done, total = 0, len(CS) * (1 if few_shot is None else few_shot.n_tries)
    with unfinished_work(context, model=loaded, data_hash=found.hash, out=out) as folder:
        with progress_of("extracting") as progress, progress_of("fitting") as fitting:

            def fitted(fit: "Fit", _: float) -> None:
                nonlocal done
                done = max(done, CS.index(fit.c)) + 1  # a sweep that goes on begins later
                fitting(done, total)

            measures = run(
                loaded,
                found.train,
                found.test,
                few_shot=few_shot,
                seed=seed,
                batch_size=batch_size,
                folder=folder,
                progress=progress,
                fitted=fitted,
            )
        report_classified(
            context, measures, protocol="logistic", model=loaded, data=found, out=out, title="Logistic regression"
        )
