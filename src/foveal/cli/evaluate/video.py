"""`foveal evaluate video`: how well do features carry the objects of a first frame through a video."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.evaluate.results import OutOption, SeedOption, check_results, report_results, unfinished_work
from foveal.cli.loading import EngineOption, FastOption, ModelOption, NumHeadsOption, PrecisionOption, open_model
from foveal.cli.terminal import progress_of
from foveal.errors import FovealError


def video(
    context: typer.Context,
    model: ModelOption,
    data: Annotated[
        Path, typer.Option("--data", help="DAVIS as distributed: JPEGImages/480p beside Annotations/480p.")
    ],
    split: Annotated[
        str | None, typer.Option("--split", help="A list in ImageSets/, such as val.  [default: every sequence]")
    ] = None,
    sequence: Annotated[list[str] | None, typer.Option("--sequence", help="Only this one; repeatable.")] = None,
    short_side: Annotated[
        int, typer.Option("--short-side", min=1, help="Pixels in which frames are seen; 480 as published.")
    ] = 480,
    masks: Annotated[
        Path | None, typer.Option("--masks", help="Write the predicted masks here, as palette PNG.")
    ] = None,
    seed: SeedOption = 0,
    out: OutOption = None,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
    num_heads: NumHeadsOption = None,
) -> None:
    """Follow objects through videos by the similarity of patches (DAVIS, semi-supervised)."""
    from foveal.evaluate.layouts.davis import hash_of, open_davis
    from foveal.evaluate.video import Tracking, run

    if masks is not None and masks.is_file():
        raise FovealError(f"--masks {masks} is a file; give a folder")
    check_results(out)
    videos = open_davis(data, split=split, sequences=sequence)
    loaded = open_model(model, engine=engine, precision=precision, fast=fast, num_heads=num_heads)
    data_hash = hash_of(videos)
    with unfinished_work(context, model=loaded, data_hash=data_hash, out=out) as folder:
        with progress_of("following") as progress:
            measures = run(
                loaded,
                videos,
                tracking=Tracking(short_side=short_side),
                masks_out=masks,
                seed=seed,
                folder=folder,
                progress=progress,
            )
        chosen = " ".join([data.resolve().name, *([split] if split else []), *(sequence or [])])
        report_results(
            context,
            measures,
            protocol="video" if short_side == Tracking().short_side else f"video, {short_side} px",
            model=loaded,
            data=chosen,
            data_hash=data_hash,
            out=out,
            title=f"video, {len(videos)} sequences, {sum(video.num_frames for video in videos)} frames",
        )
