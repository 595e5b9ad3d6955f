"""`foveal head`: masks and depth from frozen features: fit a head, use it, measure it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from foveal.cli.evaluate.results import OutOption, SeedOption, check_results, report_results
from foveal.cli.loading import ModelOption, open_model, parse_size
from foveal.cli.pictures import list_pictures, read_pictures
from foveal.cli.terminal import progress_of, typed_options, write_file
from foveal.errors import FovealError

head = typer.Typer(help="Masks and depth from frozen features: fit, predict, evaluate.", no_args_is_help=True)

HeadOption = Annotated[Path, typer.Option("--head", help="Head folder.")]
DataOption = Annotated[str, typer.Option("--data", help="Folder of pictures with masks or depth; see docs/heads.md.")]
SizeOption = Annotated[
    int | None, typer.Option("--size", min=1, help="Short side of the pictures, pixels.  [default: their own]")
]
IgnoreOption = Annotated[
    list[int] | None, typer.Option("--ignore", help="Masks: value that does not count; repeatable.  [default: 255]")
]
UnitOption = Annotated[float, typer.Option("--unit", help="Depth: metres of the value 1 in the files.")]
FlipOption = Annotated[bool, typer.Option("--flip", help="Average with the mirrored picture.")]


@head.command("fit")
def fit(
    context: typer.Context,
    task: Annotated[Literal["segmentation", "depth"], typer.Argument(help="What the head answers.")],
    kind: Annotated[
        str, typer.Argument(help="segmentation: linear, ms, mlp, dpt; depth: lin.1, lin.4, dpt.", show_default=False)
    ],
    model: ModelOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Head folder to write.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer updates.")] = 2000,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pictures a step.")] = 8,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of AdamW, the highest.  [default: masks 1e-3, depth 3e-4]")
    ] = None,
    size: SizeOption = None,
    crop_size: Annotated[
        str | None,
        typer.Option(
            help="Random crops, pixels: 512 or 416x544.  [default: whole pictures, whose features are computed once]"
        ),
    ] = None,
    distort: Annotated[bool, typer.Option(help="Change the colours of crops; turn those of depth a little.")] = True,
    ignore: IgnoreOption = None,
    unit: UnitOption = 0.001,
    max_depth: Annotated[float, typer.Option(help="Depth: end of the range, metres.")] = 10.0,
    seed: SeedOption = 0,
) -> None:
    """Fit a head on frozen features; the same command goes on where it was interrupted."""
    from foveal.evaluate.layouts.dense import open_depths, open_masks
    from foveal.tasks.fit import fit_head
    from foveal.tasks.head import check_target, save_head
    from foveal.tasks.kinds import find_kind, head_card
    from foveal.tasks.protocols import fit_settings

    find_kind(task, kind)
    masks = task == "segmentation"
    _check_options(context, masks=masks)
    if crop_size is None and "--distort" in typed_options(context):
        raise FovealError("--distort has no effect on whole pictures; give a --crop-size too, or leave it out")
    check_target(out)
    settings = fit_settings(
        task,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        size=size,
        crop_size=parse_size(crop_size, option="--crop-size"),
        distort=distort,
        seed=seed,
    )
    found = open_masks(data, ignored=ignore or (255,)) if masks else open_depths(data, unit=unit)
    loaded = open_model(model)
    card = head_card(loaded, task, kind, classes=found.classes, max_depth=max_depth)
    state = out.absolute().with_name(f".{out.name}.fit.safetensors")
    state.parent.mkdir(parents=True, exist_ok=True)
    try:
        with progress_of("fitting") as progress:
            fitted = fit_head(loaded, card, found.train, settings, state=state, progress=progress)
    except (KeyboardInterrupt, SystemExit):
        if state.is_file():
            typer.echo("the steps made so far are kept; run the same command again to go on", err=True)
        raise
    save_head(out, fitted)
    typer.echo(f"{out}: {card.name}, fitted on {len(found.train)} pictures of {found.name}")


@head.command("predict")
def predict(
    images: Annotated[list[str], typer.Argument(help="Image files, patterns of them, folders, lists, shards.")],
    model: ModelOption,
    folder: HeadOption,
    out: Annotated[Path, typer.Option("--out", help="Folder of the masks (palette PNG) or depths (16-bit PNG).")],
    size: SizeOption = None,
    flip: FlipOption = False,
    unit: UnitOption = 0.001,
    max_images: Annotated[int, typer.Option(min=1, help="Of more, so many, evenly spread.")] = 1_000_000,
) -> None:
    """Write a mask, or depth and a picture of it, for every image."""
    from foveal.tasks.head import load_head
    from foveal.tasks.written import written_answer

    listing = list_pictures(images, max_images=max_images)
    fitted = load_head(folder)
    if out.exists() and not out.is_dir():
        raise FovealError(f"--out {out} is a file; give a folder")
    loaded = open_model(model)
    predictor = loaded.with_head(fitted)
    out.mkdir(parents=True, exist_ok=True)
    for name, pixels in read_pictures(listing, channels=loaded.card.backbone.channels):
        answer = predictor.predict(pixels, size=size, flip=flip)
        for ending, data in written_answer(answer, fitted.card, unit=unit).items():
            write_file(out / f"{Path(name).stem}{ending}", data)
    typer.echo(f"{out}: {fitted.card.task} of {len(listing.entries)} images")


@head.command("evaluate")
def evaluate(
    context: typer.Context,
    model: ModelOption,
    folder: HeadOption,
    data: DataOption,
    size: SizeOption = None,
    flip: FlipOption = False,
    ignore: IgnoreOption = None,
    unit: UnitOption = 0.001,
    crop: Annotated[
        Literal["none", "nyu", "eigen", "garg"], typer.Option("--crop", help="Depth: part of a picture that counts.")
    ] = "none",
    seed: SeedOption = 0,
    out: OutOption = None,
) -> None:
    """Measure a head on the test pictures of a data set."""
    from foveal.evaluate import depth, segmentation
    from foveal.evaluate.layouts.dense import open_depths, open_masks
    from foveal.tasks.head import load_head

    check_results(out)
    fitted = load_head(folder)
    masks = fitted.card.task == "segmentation"
    _check_options(context, masks=masks)
    found = open_masks(data, ignored=ignore or (255,)) if masks else open_depths(data, unit=unit)
    if masks and found.classes != fitted.card.classes:
        raise FovealError(
            f"the head knows {len(fitted.card.classes)} classes, {', '.join(fitted.card.classes[:3])}, ...; {data} has "
            f"{len(found.classes)}, {', '.join(found.classes[:3])}, ...; measure it on data of the same classes"
        )
    loaded = open_model(model)
    predictor = loaded.with_head(fitted)
    name = str(fitted.card.lineage.get("kind", fitted.card.architecture))
    name = name.upper() if name == "dpt" else name
    with progress_of("measuring") as progress:
        if masks:
            measures = segmentation.run(
                predictor, found.test, name=name, size=size, flip=flip, seed=seed, progress=progress
            ).measures
        else:
            limit = fitted.card.settings.get("max_depth") or 10.0
            measures = depth.run(
                predictor,
                found.test,
                max_depth=limit,
                crop=crop,
                name=name,
                size=size,
                flip=flip,
                seed=seed,
                progress=progress,
            )
    report_results(
        context,
        measures,
        protocol="segment" if masks else "depth",
        model=loaded,
        data=found.name,
        data_hash=found.hash,
        out=out,
        title=f"{fitted.card.name}, {len(found.test)} test pictures of {found.name}",
    )


def _check_options(context: typer.Context, *, masks: bool) -> None:
    """Refuse options of the other task."""
    others = ("--unit", "--max-depth", "--crop") if masks else ("--ignore",)
    if wrong := [option for option in typed_options(context) if option in others]:
        raise FovealError(f"{wrong[0]} has no effect on {'masks' if masks else 'depth'}; leave it out")
