"""`foveal audit`: take out of a set of images what no training should see."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.curation import EngineOption, RayAddressOption, StageOption, WorkersOption, make_runner, print_stage
from foveal.cli.terminal import check_outside, progress_of
from foveal.errors import FovealError


def audit(
    images: Annotated[str, typer.Argument(help="A folder, a .txt list, .tar or .parquet shards, or an image set.")],
    out: StageOption,
    min_side: Annotated[int, typer.Option(help="Least pixels of the shorter side.")] = 32,
    max_pixels: Annotated[int, typer.Option(help="Most pixels, width times height.")] = 100_000_000,
    max_bytes: Annotated[int, typer.Option(help="Most bytes of a file.")] = 256 * 1024 * 1024,
    max_aspect: Annotated[float, typer.Option(help="Most of the longer side over the shorter.")] = 5.0,
    min_deviation: Annotated[
        float, typer.Option(help="Least standard deviation of the levels, 0 to 255; below, an image is blank.")
    ] = 2.0,
    max_distance: Annotated[
        int | None,
        typer.Option(help="Remove near-copies: PDQ hashes within so many of 256 bits, such as 10 (extra curate)."),
    ] = None,
    block_list: Annotated[
        Path | None, typer.Option(help="File of domains and beginnings of URLs, one a line; such images are not read.")
    ] = None,
    urls: Annotated[
        Path | None, typer.Option(help="CSV or Parquet with columns uri, url: where the images came from.")
    ] = None,
    scorer: Annotated[
        str | None, typer.Option(help="Your function, MODULE:FUNCTION or FILE.py:FUNCTION: image -> 0 to 1.")
    ] = None,
    max_score: Annotated[float | None, typer.Option(help="Most of its score.  [default: 0.5]")] = None,
    transform: Annotated[
        str | None, typer.Option(help="Your function: image -> image or None; what it changes is written below --out.")
    ] = None,
    shard_size: Annotated[int, typer.Option(help="Images in a shard, the most an interruption costs.")] = 1024,
    workers: WorkersOption = 1,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
) -> None:
    """Take out what is unreadable, tiny, huge, long, blank, a copy, blocked or scored; nothing is deleted."""
    from foveal.curate.audit import AuditSettings, run_audit
    from foveal.curate.block_list import with_urls
    from foveal.images.imageset import ImageSet

    check_outside(out, Path(images))
    _check_options(scorer=scorer, max_score=max_score, block_list=block_list, urls=urls)
    settings = AuditSettings(
        min_side=min_side,
        max_pixels=max_pixels,
        max_bytes=max_bytes,
        max_aspect=max_aspect,
        min_deviation=min_deviation,
        max_distance=max_distance,
        max_score=0.5 if max_score is None else max_score,
        shard_size=shard_size,
    )
    runner = make_runner(workers, engine, ray_address)
    opened = ImageSet.open(images)
    with progress_of("audit") as progress:
        stage = run_audit(
            opened if urls is None else with_urls(opened, urls),
            out=out,
            settings=settings,
            block_list=block_list,
            scorer=scorer,
            transform=transform,
            runner=runner,
            progress=progress,
        )
    print_stage(out, stage.summary or {})


def _check_options(*, scorer: str | None, max_score: float | None, block_list: Path | None, urls: Path | None) -> None:
    if max_score is not None and scorer is None:
        raise FovealError("--max-score has no effect without --scorer; add that, or leave it out")
    if urls is not None and block_list is None:
        raise FovealError("--urls has no effect without --block-list; add that, or leave it out")
