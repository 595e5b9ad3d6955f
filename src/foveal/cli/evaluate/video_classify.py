"""`foveal evaluate video-classify`: clips by the features of a few of their frames."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import typer

from foveal.cli.evaluate.results import BatchSizeOption, OutOption, SeedOption, check_results, report_results
from foveal.cli.loading import EngineOption, FastOption, ModelOption, NumHeadsOption, PrecisionOption, open_model
from foveal.cli.terminal import progress_of


def video_classify(
    context: typer.Context,
    model: ModelOption,
    train: Annotated[Path, typer.Option("--train", help="Clips that vote: CLASS/CLIP/ with the frames of each.")],
    test: Annotated[Path, typer.Option("--test", help="Clips that are classified.")],
    join: Annotated[
        Literal["mean", "concatenate"], typer.Option("--join", help="Of the frames; concatenate keeps their order.")
    ] = "mean",
    num_frames: Annotated[int, typer.Option("--num-frames", min=1, help="Evenly spaced, of each clip.")] = 8,
    k: Annotated[
        list[int] | None, typer.Option("--k", min=1, help="Neighbours; repeatable.  [default: 10 20 100 200]")
    ] = None,
    seed: SeedOption = 0,
    batch_size: BatchSizeOption = 32,
    out: OutOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
    num_heads: NumHeadsOption = None,
) -> None:
    """Classify video clips, folders of frames, by their nearest neighbours in feature space."""
    from foveal.evaluate.knn import KS
    from foveal.evaluate.layouts.clips import open_clips
    from foveal.evaluate.video_classify import run

    check_results(out)
    sets = [open_clips(folder, num_frames=num_frames) for folder in (train, test)]
    loaded = open_model(model, engine=engine, precision=precision, fast=fast, num_heads=num_heads)
    with progress_of("extracting") as progress:
        measures = run(
            loaded, sets[0], sets[1], join=join, ks=k or KS, batch_size=batch_size, seed=seed, progress=progress
        )
    report_results(
        context,
        measures,
        protocol=f"video-classify, knn, {join} of {num_frames}",
        model=loaded,
        data=train.resolve().parent.name,
        data_hash=hashlib.sha256(" ".join(clips.frames.hash for clips in sets).encode()).hexdigest(),
        out=out,
        title=f"clips, {len(sets[0])} train and {len(sets[1])} test clips",
    )
