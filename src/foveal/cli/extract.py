"""`foveal extract`: features of an image set into a feature store that can be interrupted and continued."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from foveal.cli.loading import (
    FastOption,
    FitOption,
    NumHeadsOption,
    PrecisionOption,
    open_model,
    parse_size,
)
from foveal.cli.terminal import check_outside, progress_of, typed_options
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.features.extract import Model
    from foveal.features.extraction import Extraction
    from foveal.features.ray_shards import Job
    from foveal.images.imageset import ImageSet


def extract(
    context: typer.Context,
    images: Annotated[str, typer.Argument(help="A folder, a .txt list, .tar or .parquet shards, or an image set.")],
    out: Annotated[Path, typer.Option(help="Feature store to make or to continue.")],
    model: Annotated[
        str | None, typer.Option(help="Model folder, checkpoint, or name in `foveal models`; needed but for --verify.")
    ] = None,
    tokens: Annotated[str, typer.Option(help="Of cls, registers, patches, mean; separated by commas.")] = "cls",
    layers: Annotated[
        str | None, typer.Option(help="Blocks from 0, such as 5,11; through the final norm.  [default: the last]")
    ] = None,
    dtype: Annotated[
        Literal["float16", "int8", "float32"], typer.Option(help="int8 has a scale for each vector.")
    ] = "float16",
    pca: Annotated[int | None, typer.Option(help="Reduce patches to so many components.", min=1)] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Pixels: one side, or height x width, 224x448.  [default: the model's; fit resize, pad: each image's]"
        ),
    ] = None,
    fit: FitOption = "crop",
    batch_size: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 32,
    shard_size: Annotated[int, typer.Option(help="Images in a shard, the most an interruption costs.", min=1)] = 1024,
    max_bad_share: Annotated[float, typer.Option(help="Stop above this share of bad images.", min=0, max=1)] = 0.01,
    shard: Annotated[
        str | None, typer.Option(help="Only part i of n of the shards, i/n from 0/n: for job arrays.", metavar="i/n")
    ] = None,
    engine: Annotated[
        Literal["auto", "torch", "openvino", "ray"],
        typer.Option(help="auto is the fastest within 0.9999 of fp32; ray says the same as --on ray."),
    ] = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
    num_heads: NumHeadsOption = None,
    on: Annotated[
        str | None, typer.Option(help="Where to run: ray, for a Ray cluster; `--engine ray` says the same.")
    ] = None,
    ray_address: Annotated[str | None, typer.Option(help="Of a cluster.  [default: RAY_ADDRESS or a new one]")] = None,
    ray_cpus: Annotated[int | None, typer.Option(help="CPUs of one Ray task.  [default: 1]", min=1)] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Extract nothing; compare store and images with their sha256.")
    ] = False,
) -> None:
    """Extract frozen features of every readable image; run the same command again to continue after an interruption."""
    if verify:
        _verify(out, images, useless=[name for name in typed_options(context) if name not in ("--out", "--verify")])
        return
    if engine == "ray":
        engine, on = "auto", "ray"
    if model is None:
        raise FovealError("--model is missing; give a model folder, a checkpoint, or a name in `foveal models`")
    _check_options(on=on, shard=shard, ray_address=ray_address, ray_cpus=ray_cpus)
    from foveal.backbone.source import peek_card
    from foveal.features.extraction import check_target
    from foveal.features.ray_shards import Job
    from foveal.features.stamp import StoreSettings
    from foveal.images.imageset import ImageSet

    settings = StoreSettings(
        tokens=tuple(part.strip() for part in tokens.split(",")),  # type: ignore[misc]  # checked with the model
        layers=_numbers(layers),
        dtype=dtype,
        pca=pca,
        size=parse_size(size),
        fit=fit,
        batch_size=batch_size,
        shard_size=shard_size,
    )
    settings.check(peek_card(model))
    check_target(out)
    check_outside(out, Path(images))
    image_set = ImageSet.open(images)
    job = Job(
        os.path.abspath(images),
        os.path.abspath(model) if os.path.exists(model) else model,
        settings,
        load_options=(("engine", engine), ("precision", precision), ("fast", fast), ("num_heads", num_heads)),
    )
    loaded = open_model(model, engine=engine, precision=precision, fast=fast, num_heads=num_heads)
    try:
        summary = _extract(
            job,
            image_set,
            loaded,
            out,
            part=shard,
            on=on,
            address=ray_address,
            cpus=ray_cpus or 1,
            max_bad_share=max_bad_share,
        )
    except (KeyboardInterrupt, SystemExit):
        typer.echo("the finished shards stay; run the same command again to continue", err=True)
        raise
    if summary is None:
        typer.echo(f"part {shard} of {out} is done; other shards are missing still")
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in summary["bad"].items())
    skipped = f", skipped: {reasons} (named in {out / 'bad_images'})" if reasons else ""
    typer.echo(f"wrote {out}: {summary['num_features']:,} images{skipped}, {_size(summary['bytes'])}")
    for name, cosine in summary["cosine"].items():
        typer.echo(
            f"{name}: {summary['bytes_per_image'][name]:,} bytes an image, "
            f"cosine to float32 {cosine['min']:.6f} at least, {cosine['mean']:.6f} in the mean"
        )


def _extract(
    job: "Job",
    images: "ImageSet",
    model: "Model",
    out: Path,
    *,
    part: str | None,
    on: str | None,
    address: str | None,
    cpus: int,
    max_bad_share: float,
) -> dict[str, Any] | None:
    from foveal.features.extraction import open_extraction, shards_of_part
    from foveal.features.ray_shards import run_on_ray

    with progress_of("preparing") as progress:
        extraction = open_extraction(out, model, images, job.settings, progress=progress)
    _announce(extraction)
    with progress_of("extracting") as progress:
        if on == "ray":
            return run_on_ray(
                extraction, job, address=address, num_cpus=cpus, max_bad_share=max_bad_share, progress=progress
            )
        shards = None if part is None else shards_of_part(part, extraction.card.num_shards)
        return extraction.run(shards, max_bad_share=max_bad_share, progress=progress)


def _announce(extraction: "Extraction") -> None:
    """Say on stderr what is coming: bytes per image, of the whole set, and what is free."""
    card, missing = extraction.card, extraction.missing()
    each = sum(card.bytes_per_image.values())
    arrays = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in card.shapes.items())
    typer.echo(
        f"{arrays} in {card.dtype}: {each:,} bytes an image, {_size(each * card.num_images)} for {card.num_images:,} "
        f"images; {_size(shutil.disk_usage(extraction.store).free)} free",
        err=True,
    )
    if len(missing) < card.num_shards:
        typer.echo(f"continuing: {card.num_shards - len(missing)} of {card.num_shards} shards are finished", err=True)


def _verify(out: Path, images: str, *, useless: list[str]) -> None:
    if useless:
        raise FovealError(f"{', '.join(useless)} has no effect beside --verify, which extracts nothing; leave it out")
    from foveal.features.extraction import check_same_images
    from foveal.features.store import read_card
    from foveal.features.unchanged import verify_store
    from foveal.images.imageset import ImageSet

    card, image_set = read_card(out), ImageSet.open(images)
    check_same_images(out, card, image_set)
    with progress_of("comparing") as progress:
        num_images = verify_store(out, card, image_set, progress=progress)
    typer.echo(f"{out}: {num_images:,} of {card.num_images:,} images extracted; these and their features are unchanged")


def _check_options(*, on: str | None, shard: str | None, ray_address: str | None, ray_cpus: int | None) -> None:
    if on not in (None, "ray"):
        raise FovealError(f"--on {on}; the one choice is ray, and without --on the work is done here")
    if on is None and (ray_address is not None or ray_cpus is not None):
        raise FovealError("--ray-address and --ray-cpus have no effect without --on ray; add that, or leave them out")
    if on is not None and shard is not None:
        raise FovealError("--shard has no effect beside --on ray, which takes all shards; leave one of them out")
    from foveal.features.extraction import shards_of_part
    from foveal.features.ray_tasks import import_ray

    if shard is not None:
        shards_of_part(shard, 1)
    if on is not None:
        import_ray()


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise FovealError(f"--layers {text}; write block numbers separated by commas, such as 5,11") from error


def _size(num_bytes: float) -> str:
    """Return a number of bytes in the largest unit that leaves at least 1, decimal as disks are sold."""
    units = ("bytes", "kB", "MB", "GB", "TB")
    power = 0
    while num_bytes >= 1000 and power < len(units) - 1:
        num_bytes, power = num_bytes / 1000, power + 1
    return f"{num_bytes:.0f} {units[power]}" if power == 0 else f"{num_bytes:.1f} {units[power]}"
