"""`foveal compare`: which of several models is the one for these images."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.evaluate.classification import DataOption, SplitOption, TestOption, TrainOption
from foveal.cli.evaluate.results import BatchSizeOption, SeedOption, check_results
from foveal.cli.loading import EngineOption, FastOption, PrecisionOption, open_model
from foveal.cli.terminal import print_table, progress_of


def compare(
    context: typer.Context,
    models: Annotated[
        list[str], typer.Argument(help="Two or more, each as for --model, e.g. open_clip:NAME/PRETRAINED.")
    ],
    data: DataOption = None,
    train: TrainOption = None,
    test: TestOption = None,
    split: SplitOption = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option("--protocol", help="knn, logistic, linear-cached; repeatable.  [default: knn, logistic]"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the page and of the rows.")] = Path("comparison"),
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = 32,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
) -> None:
    """Measure frozen models on the same labelled images: quality, speed and size in one table and one page."""
    from foveal.evaluate.layouts.classification import open_classification
    from foveal.studies.compare import DEFAULT, check, table, write_comparison
    from foveal.studies.compare import compare as run

    chosen = protocol or DEFAULT
    check(models=models, protocols=chosen)
    check_results(out)
    found = open_classification(data, train=train, test=test, split=split)
    opened = [(name, open_model(name, engine=engine, precision=precision, fast=fast)) for name in models]
    with progress_of("comparing") as progress:
        compared = run(
            opened,
            found,
            protocols=chosen,
            seed=seed,
            batch_size=batch_size,
            listener=lambda _model, _protocol, done, total: progress(done, total),
        )
    print_table(*table(compared), title=f"{len(models)} models, {found.sizes}")
    page = write_comparison(out, compared, found, command=context.obj.command)
    typer.echo(f"page: {page}", err=True)
