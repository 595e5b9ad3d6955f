"""`foveal head`: labels, masks and depth from frozen features: fit a head, use it, measure it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from foveal.cli.evaluate.results import OutOption, SeedOption, check_results, report_results
from foveal.cli.head_classes import (
    evaluate_classes,
    fit_classes,
    kept_state,
    of_classes,
    predict_classes,
    protocol_of,
    read_names,
)
from foveal.cli.loading import ModelOption, NumHeadsOption, open_model, parse_size
from foveal.cli.pictures import list_pictures, read_pictures
from foveal.cli.terminal import progress_of, typed_options, write_file
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.features.extract import Model
    from foveal.tasks.head import Head
    from foveal.tasks.public_heads import DepthAnythingVersion

head = typer.Typer(help="Labels, masks and depth from frozen features: fit, predict, evaluate.", no_args_is_help=True)

HeadOption = Annotated[Path, typer.Option("--head", help="Head folder, or file of a public head.")]
DataOption = Annotated[
    str, typer.Option("--data", help="Folder of pictures with labels, masks or depth; see docs/heads.md.")
]
SizeOption = Annotated[
    int | None,
    typer.Option("--size", min=1, help="Short side of the pictures, pixels.  [default: as fitted, else their own]"),
]
IgnoreOption = Annotated[
    list[int] | None, typer.Option("--ignore", help="Masks: value that does not count; repeatable.  [default: 255]")
]
UnitOption = Annotated[
    float | None,
    typer.Option("--unit", help="Depth: metres of the value 1 in the files.  [default: 0.001; KITTI 1/256]"),
]
MaxDepthOption = Annotated[
    float | None, typer.Option("--max-depth", help="Public depth heads: end of the range, metres, if no name tells it.")
]
VersionOption = Annotated[
    Literal["v1", "v2"] | None,
    typer.Option("--version", help="Depth Anything: which, if the file's name does not tell."),
]
NamesOption = Annotated[
    Path | None, typer.Option("--names", help="Public classification heads: file with the name of a class a line.")
]
FlipOption = Annotated[bool, typer.Option("--flip", help="Average with the mirrored picture.")]


@head.command("fit")
def fit(
    context: typer.Context,
    task: Annotated[Literal["classification", "segmentation", "depth"], typer.Argument(help="What the head answers.")],
    kind: Annotated[
        str,
        typer.Argument(
            help="classification: linear, linear4, mlp, attentive; segmentation: linear, ms, mlp, dpt; "
            "depth: lin.1, lin.4, dpt.",
            show_default=False,
        ),
    ],
    model: ModelOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Head folder to write.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimizer updates.")] = 2000,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Pictures a step.  [default: 8; labels 256]")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of AdamW, the highest.  [default: 1e-3; depth 3e-4]")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Short side of the pictures, pixels.  [default: their own]")
    ] = None,
    crop_size: Annotated[
        str | None,
        typer.Option(
            help="Random crops, pixels: 512 or 416x544.  [default: whole pictures, whose features are computed once]"
        ),
    ] = None,
    distort: Annotated[bool, typer.Option(help="Change the colours of crops; turn those of depth a little.")] = True,
    ignore: IgnoreOption = None,
    unit: UnitOption = None,
    max_depth: Annotated[float, typer.Option(help="Depth: end of the range, metres.")] = 10.0,
    num_heads: NumHeadsOption = None,
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
    _check_options(context, task)
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
    if task == "classification":
        return fit_classes(kind, model=model, data=data, out=out, settings=settings, num_heads=num_heads)
    found = open_masks(data, ignored=ignore) if masks else open_depths(data, unit=unit)
    loaded = open_model(model, num_heads=num_heads)
    card = head_card(loaded, task, kind, classes=found.classes, max_depth=max_depth)
    with kept_state(out) as state, progress_of("fitting") as progress:
        fitted = fit_head(loaded, card, found.train, settings, state=state, progress=progress)
        save_head(out, fitted)
    typer.echo(f"{out}: {card.name}, fitted on {len(found.train)} pictures of {found.name}")


@head.command("predict")
def predict(
    context: typer.Context,
    images: Annotated[list[str], typer.Argument(help="Image files, patterns of them, folders, lists, shards.")],
    model: ModelOption,
    folder: HeadOption,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of labels (CSV), masks (palette PNG) or depths (16-bit PNG).")
    ],
    size: SizeOption = None,
    flip: FlipOption = False,
    crop_size: Annotated[
        int | None, typer.Option(min=1, help="Side of sliding windows, pixels.  [default: 512; depth: the picture]")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Pixels from window to window.  [default: 2/3 of --crop-size]")
    ] = None,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Masks: also NAME.npy, (classes, height, width) float16. Labels: also probabilities.npy.",
        ),
    ] = False,
    unit: Annotated[float, typer.Option("--unit", help="Depth: metres of the value 1 in the files.")] = 0.001,
    max_depth: MaxDepthOption = None,
    version: VersionOption = None,
    names: NamesOption = None,
    num_heads: NumHeadsOption = None,
    max_images: Annotated[int, typer.Option(min=1, help="Of more, so many, evenly spread.")] = 1_000_000,
) -> None:
    """Write labels, or for every image a mask, or depth and a picture of it."""
    from foveal.tasks.classify import ClassPredictor
    from foveal.tasks.samples import check_unit
    from foveal.tasks.windows import check_windows
    from foveal.tasks.written import written_answer

    listing = list_pictures(images, max_images=max_images)
    check_windows(crop_size, stride)
    check_unit(unit)
    _check_folder(images, out)
    loaded, fitted = _open(model, folder, max_depth=max_depth, version=version, names=names, num_heads=num_heads)
    _check_options(context, fitted.card.task)
    predictor = loaded.with_head(fitted)
    if isinstance(predictor, ClassPredictor):
        return predict_classes(predictor, listing, out, probabilities=probabilities)
    _check_names([entry.name for entry in listing.entries])
    out.mkdir(parents=True, exist_ok=True)
    for name, pixels in read_pictures(listing, channels=loaded.card.backbone.channels):
        target = out / Path(name).stem
        answer = predictor.predict(
            pixels,
            size=size,
            flip=flip,
            crop_size=crop_size,
            stride=stride,
            probabilities=Path(f"{target}.npy") if probabilities else None,
        )
        for ending, data in written_answer(answer, fitted.card, unit=unit).items():
            write_file(Path(f"{target}{ending}"), data)
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
    unit: UnitOption = None,
    crop: Annotated[
        Literal["none", "nyu", "eigen", "garg"], typer.Option("--crop", help="Depth: part of a picture that counts.")
    ] = "none",
    max_depth: MaxDepthOption = None,
    version: VersionOption = None,
    names: NamesOption = None,
    num_heads: NumHeadsOption = None,
    seed: SeedOption = 0,
    out: OutOption = None,
) -> None:
    """Measure a head on the test pictures of a data set."""
    from foveal.evaluate import depth, segmentation
    from foveal.evaluate.layouts.dense import open_depths, open_masks
    from foveal.tasks.predict import Predictor

    check_results(out)
    loaded, fitted = _open(model, folder, max_depth=max_depth, version=version, names=names, num_heads=num_heads)
    masks = fitted.card.task == "segmentation"
    _check_options(context, fitted.card.task)
    if fitted.card.task == "classification":
        return evaluate_classes(context, loaded, fitted, folder=folder, data=data, seed=seed, out=out)
    found = open_masks(data, ignored=ignore) if masks else open_depths(data, unit=unit)
    if masks:
        fitted = of_classes(fitted, found.classes, data)
    elif fitted.card.settings.get("max_depth") is None:
        raise FovealError(f"the head {fitted.card.name} answers relative depth, in no unit; measure a metric one")
    predictor = Predictor(loaded, fitted)
    name = str(fitted.card.lineage.get("kind", fitted.card.architecture))
    name = name.upper() if name == "dpt" else name
    words = [f"size {size}"] * (size is not None) + ["flip"] * flip + [f"crop {crop}"] * (crop != "none")
    with progress_of("measuring") as progress:
        if masks:
            measures = segmentation.run(
                predictor, found.test, name=name, size=size, flip=flip, seed=seed, progress=progress
            ).measures
        else:
            measures = depth.run(
                predictor,
                found.test,
                max_depth=fitted.card.settings["max_depth"],
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
        protocol=protocol_of("segment" if masks else "depth", fitted, *words),
        model=loaded,
        data=found.name,
        data_hash=found.hash,
        out=out,
        title=f"{fitted.card.name}, {len(found.test)} test pictures of {found.name}",
    )


def _open(
    model: str,
    head: Path,
    *,
    max_depth: float | None,
    version: "DepthAnythingVersion | None",
    names: Path | None,
    num_heads: int | None,
) -> "tuple[Model, Head]":
    """Open a model and the head of a folder or file; what is no head is refused before the model is read."""
    from foveal.tasks.head import load_head
    from foveal.tasks.public_heads import open_head

    if not head.is_file():
        load_head(head)
    classes = None if names is None else read_names(names)
    loaded = open_model(model, num_heads=num_heads)
    return loaded, open_head(head, loaded, max_depth=max_depth, version=version, classes=classes)


def _check_folder(sources: Sequence[str], out: Path) -> None:
    """Refuse a folder where answers would replace the pictures."""
    if out.exists() and not out.is_dir():
        raise FovealError(f"--out {out} is a file; give a folder")
    for source in map(Path, sources):
        if out.resolve() == (source if source.is_dir() else source.parent).resolve():
            raise FovealError(f"--out {out} is where the pictures are, which would be replaced; give another folder")


def _check_names(names: Sequence[str]) -> None:
    """Refuse pictures whose answers would replace each other."""
    twice = [stem for stem, count in Counter(Path(name).stem for name in names).items() if count > 1]
    if twice:
        raise FovealError(
            f"{len(twice)} names occur more than once, first {twice[0]}; their answers would replace each other: "
            "predict one folder at a time"
        )


_DENSE = ("--size", "--crop-size", "--stride", "--distort", "--no-distort", "--flip")
_WITHOUT_EFFECT = {
    "classification": (*_DENSE, "--ignore", "--unit", "--max-depth", "--crop", "--version"),
    "segmentation": ("--unit", "--max-depth", "--crop", "--version", "--names"),
    "depth": ("--ignore", "--probabilities", "--names"),
}


def _check_options(context: typer.Context, task: str) -> None:
    """Refuse options of the other tasks."""
    if wrong := [option for option in typed_options(context) if option in _WITHOUT_EFFECT[task]]:
        answer = {"classification": "labels", "segmentation": "masks"}.get(task, task)
        raise FovealError(f"{wrong[0]} has no effect on {answer}; leave it out")
