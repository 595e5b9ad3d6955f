"""`foveal evaluate segment`: masks by a head on frozen features."""

from typing import Annotated, Any, Literal

import typer

from foveal.cli.evaluate.dense import (
    CropsOption,
    FitBatchOption,
    HeadOutOption,
    RateOption,
    ShortSideOption,
    StepsOption,
    check_head_out,
    fitted_head,
    parse_crops,
    parse_short_side,
)
from foveal.cli.evaluate.results import OutOption, SeedOption, check_results, report_results, unfinished_work
from foveal.cli.loading import ModelOption, NumHeadsOption, PrecisionOption, open_model
from foveal.cli.terminal import progress_of
from foveal.errors import FovealError


def segment(
    context: typer.Context,
    model: ModelOption,
    data: Annotated[str, typer.Option("--data", help="Pictures with masks; see docs/heads.md.")],
    kind: Annotated[Literal["linear", "ms", "mlp", "dpt"], typer.Option("--kind", help="Of the head.")] = "linear",
    steps: StepsOption = None,
    batch_size: FitBatchOption = None,
    learning_rate: RateOption = None,
    size: ShortSideOption = None,
    crop_size: CropsOption = None,
    ignore: Annotated[
        list[int] | None, typer.Option("--ignore", help="Value that does not count; repeatable.  [default: 255]")
    ] = None,
    seed: SeedOption = 0,
    head_out: HeadOutOption = None,
    out: OutOption = None,
    precision: PrecisionOption = None,
    num_heads: NumHeadsOption = None,
) -> None:
    """Fit a head for masks as published, and measure it: mean intersection over union."""
    from foveal.evaluate.confusion import Confusion, write_confusion
    from foveal.evaluate.dense_protocols import segment_protocol
    from foveal.evaluate.layouts.dense import open_masks
    from foveal.evaluate.segmentation import run
    from foveal.tasks.kinds import head_card
    from foveal.tasks.predict import Predictor

    check_results(out)
    check_head_out(head_out)
    crops = parse_crops(crop_size)
    if isinstance(crops, tuple):
        raise FovealError(f"--crop-size {crop_size}; give one side in pixels, or whole")
    changed: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    changed |= {"size": parse_short_side(size), "crop_size": crops}
    segment_protocol(kind, "", **changed)
    found = open_masks(data, ignored=ignore)
    protocol = segment_protocol(kind, found.name, **changed)
    loaded = open_model(model, engine="torch", precision=precision, num_heads=num_heads)
    card = head_card(loaded, "segmentation", kind, classes=found.classes)
    with unfinished_work(context, model=loaded, data_hash=found.hash, out=out) as folder:
        head = fitted_head(loaded, card, found, protocol.fit, folder=folder, head_out=head_out)
        name = "DPT" if kind == "dpt" else kind
        with progress_of("measuring") as progress:
            measured = run(
                Predictor(loaded, head),
                found.test,
                name=name,
                size=protocol.fit.size,
                scales=protocol.scales,
                flip=protocol.flip,
                crop_size=protocol.crop_size,
                stride=protocol.stride,
                seed=seed,
                state=None if folder is None else folder / "measured.safetensors",
                progress=progress,
            )
        if out is not None:
            title = f"{protocol.name}, {name}, {found.name}, {loaded.card.name} {loaded.identity[:8]}"
            write_confusion(out, Confusion(title, found.classes, measured.confusion))
        report_results(
            context,
            measured.measures,
            protocol=protocol.name,
            model=loaded,
            data=found.name,
            data_hash=found.hash,
            out=out,
            title=f"{card.name}, {len(found.test)} test pictures of {found.name}",
        )
