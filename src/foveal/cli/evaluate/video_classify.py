"""`foveal evaluate video-classify`: clips by the features of a few of their frames."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import typer

from foveal.cli.evaluate.results import (
    BatchSizeOption,
    OutOption,
    SeedOption,
    check_results,
    report_results,
    unfinished_work,
)
from foveal.cli.loading import EngineOption, FastOption, ModelOption, NumHeadsOption, PrecisionOption, open_model
from foveal.cli.terminal import progress_of
from foveal.errors import FovealError

# Fixed views: not the protocol of the published figures, which must not stand beside these numbers.
_LEARNERS = {"knn": "knn", "linear": "linear-cached"}


def video_classify(
    context: typer.Context,
    model: ModelOption,
    train: Annotated[Path, typer.Option("--train", help="Clips to learn from: CLASS/CLIP/ with the frames of each.")],
    test: Annotated[Path, typer.Option("--test", help="Clips that are classified.")],
    classifier: Annotated[
        Literal["knn", "linear"], typer.Option("--classifier", help="What learns from the train clips.")
    ] = "knn",
    join: Annotated[
        Literal["mean", "concatenate"], typer.Option("--join", help="Of the frames; concatenate keeps their order.")
    ] = "mean",
    num_frames: Annotated[int, typer.Option("--num-frames", min=1, help="Evenly spaced, of each clip.")] = 8,
    k: Annotated[
        list[int] | None, typer.Option("--k", min=1, help="Neighbours; repeatable.  [default: 10 20 100 200]")
    ] = None,
    num_steps: Annotated[
        int | None,
        typer.Option("--num-steps", min=1, help="Of the linear classifiers, 128 clips each.  [default: 1250]"),
    ] = None,
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = 32,
    out: OutOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
    num_heads: NumHeadsOption = None,
) -> None:
    """Classify video clips, folders of frames, by their nearest neighbours or by linear classifiers."""
    if k is not None and classifier != "knn":
        raise FovealError(f"--k has no effect on --classifier {classifier}; leave it out")
    if num_steps is not None and classifier != "linear":
        raise FovealError(f"--num-steps has no effect on --classifier {classifier}; leave it out")
    from foveal.evaluate.knn import KS
    from foveal.evaluate.layouts.clips import open_clips
    from foveal.evaluate.linear_cached import NUM_STEPS
    from foveal.evaluate.video_classify import run

    steps = [f"{num_steps} steps"] * (num_steps not in (None, NUM_STEPS))
    check_results(out)
    sets = [open_clips(folder, num_frames=num_frames) for folder in (train, test)]
    data_hash = hashlib.sha256(" ".join(clips.frames.hash for clips in sets).encode()).hexdigest()
    loaded = open_model(model, engine=engine, precision=precision, fast=fast, num_heads=num_heads)
    with unfinished_work(context, model=loaded, data_hash=data_hash, out=out) as folder:
        with progress_of("extracting") as progress, progress_of("training") as trained:
            measures = run(
                loaded,
                sets[0],
                sets[1],
                classifier=classifier,
                join=join,
                ks=k or KS,
                num_steps=num_steps or NUM_STEPS,
                batch_size=batch_size,
                seed=seed,
                folder=folder,
                progress=progress,
                trained=trained,
            )
        report_results(
            context,
            measures,
            protocol=", ".join(["video-classify", _LEARNERS[classifier], f"{join} of {num_frames}", *steps]),
            model=loaded,
            data=train.resolve().parent.name,
            data_hash=data_hash,
            out=out,
            title=f"clips, {len(sets[0])} train and {len(sets[1])} test clips",
        )
