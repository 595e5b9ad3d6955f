"""`foveal evaluate robustness`: accuracy under the common corruptions."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from foveal.cli.evaluate.classification import DataOption, SplitOption, TestOption, TrainOption
from foveal.cli.evaluate.results import (
    BatchSizeOption,
    OutOption,
    SeedOption,
    check_results,
    report_results,
    unfinished_work,
)
from foveal.cli.head_classes import open_classifier
from foveal.cli.loading import EngineOption, FastOption, ModelOption, NumHeadsOption, PrecisionOption, open_model
from foveal.cli.terminal import progress_of
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.evaluate.corruptions.conditions import Corrupted
    from foveal.tasks.head import Head


def robustness(
    context: typer.Context,
    model: ModelOption,
    data: DataOption = None,
    train: TrainOption = None,
    test: TestOption = None,
    split: SplitOption = None,
    corrupted: Annotated[
        Path | None,
        typer.Option("--corrupted", help="Corrupted pictures as files: CORRUPTION/SEVERITY/CLASS/name, as ImageNet-C."),
    ] = None,
    corruption: Annotated[
        list[str] | None, typer.Option("--corruption", help="One of the 15; repeatable.  [default: all]")
    ] = None,
    severity: Annotated[
        list[int] | None, typer.Option("--severity", help="1 to 5; repeatable.  [default: all]")
    ] = None,
    classifier: Annotated[
        Literal["knn", "logistic"] | None,
        typer.Option("--classifier", help="What learns from the clean train images.  [default: knn]"),
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option("--head", help="Instead: a classification head, as a folder or the file of an official one."),
    ] = None,
    k: Annotated[int | None, typer.Option("--k", min=1, help="Neighbours of kNN.  [default: 20]")] = None,
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = 32,
    out: OutOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
    num_heads: NumHeadsOption = None,
) -> None:
    """Classify test images under 15 corruptions at 5 severities, with what was learned from clean ones."""
    if head is not None and (classifier is not None or k is not None):
        raise FovealError(
            f"{'--k' if classifier is None else '--classifier'} has no effect beside --head; leave it out"
        )
    classifier = classifier or "knn"
    if k is not None and classifier != "knn":
        raise FovealError(f"--k has no effect on --classifier {classifier}; leave it out")
    from foveal.evaluate.corruptions.conditions import all_conditions, generate, open_corrupted
    from foveal.evaluate.corruptions.corrupt import CORRUPTIONS, SEVERITIES
    from foveal.evaluate.layouts.classification import open_classification
    from foveal.evaluate.published import IMAGENET, IMAGENET_C
    from foveal.evaluate.robustness import run, run_head

    conditions = all_conditions(corruption or tuple(CORRUPTIONS), severity or SEVERITIES)
    check_results(out)
    loaded = open_model(model, engine=engine, precision=precision, fast=fast, num_heads=num_heads)
    found = open_classification(data, train=train, test=test, split=split)
    if corrupted is None:
        margin = loaded.card.resize_size / loaded.card.crop_size
        shown = generate(found.test, conditions, margin=margin, seed=seed)
    else:
        shown = open_corrupted(corrupted, conditions)
    data_hash = hashlib.sha256(f"{found.hash} {shown.hash}".encode()).hexdigest()
    fitted = None if head is None else open_classifier(head, loaded, found)
    neighbours = 20 if k is None else k
    with (
        unfinished_work(context, model=loaded, data_hash=data_hash, out=out) as state,
        progress_of("classifying") as progress,
    ):
        if fitted is None:
            learner = f"knn-{neighbours}" if classifier == "knn" else classifier
            measures = run(
                loaded,
                found.train,
                found.test,
                shown,
                classifier=classifier,
                k=neighbours,
                seed=seed,
                batch_size=batch_size,
                state=state,
                progress=progress,
            )
        else:
            learner = fitted.card.name
            measures = run_head(
                loaded, fitted, found.test, shown, seed=seed, batch_size=batch_size, state=state, progress=progress
            )
    report_results(
        context,
        measures,
        protocol=_protocol(shown, learner, fitted),
        model=loaded,
        data=IMAGENET_C if not shown.generated and found.name == IMAGENET else found.name,
        data_hash=data_hash,
        out=out,
        title=f"{len(conditions)} corruptions and severities, {found.sizes}",
    )


def _protocol(shown: "Corrupted", learner: str, head: "Head | None") -> str:
    """Return the name of the protocol: the published one for official linear heads on files, else one of its own."""
    if head is not None and head.card.backbone is None and not shown.generated:
        return "robustness"
    return "-".join(["robustness", "generated" if shown.generated else "files", learner])
