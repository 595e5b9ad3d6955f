"""`foveal evaluate depth`: metres by a head on frozen features."""

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
from foveal.cli.head import UnitOption
from foveal.cli.loading import ModelOption, NumHeadsOption, PrecisionOption, open_model
from foveal.cli.terminal import progress_of


def depth(
    context: typer.Context,
    model: ModelOption,
    data: Annotated[str, typer.Option("--data", help="Pictures with 16-bit depth; see docs/heads.md.")],
    kind: Annotated[Literal["lin.1", "lin.4", "dpt"], typer.Option("--kind", help="Of the head.")] = "lin.1",
    steps: StepsOption = None,
    batch_size: FitBatchOption = None,
    learning_rate: RateOption = None,
    size: ShortSideOption = None,
    crop_size: CropsOption = None,
    unit: UnitOption = None,
    max_depth: Annotated[
        float | None, typer.Option("--max-depth", help="End of the range, metres.  [default: 10, KITTI 80]")
    ] = None,
    crop: Annotated[
        Literal["none", "nyu", "eigen", "garg"] | None,
        typer.Option("--crop", help="Part of a test picture that counts.  [default: none, NYUd nyu, KITTI garg]"),
    ] = None,
    seed: SeedOption = 0,
    head_out: HeadOutOption = None,
    out: OutOption = None,
    precision: PrecisionOption = None,
    num_heads: NumHeadsOption = None,
) -> None:
    """Fit a head for depth as published, and measure it: RMSE, relative error and the delta shares."""
    from foveal.evaluate.dense_protocols import depth_protocol
    from foveal.evaluate.depth import run
    from foveal.evaluate.layouts.dense import open_depths
    from foveal.tasks.kinds import head_card
    from foveal.tasks.predict import Predictor

    check_results(out)
    check_head_out(head_out)
    changed: dict[str, Any] = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    changed |= {"size": parse_short_side(size), "crop_size": parse_crops(crop_size)}
    changed |= {"max_depth": max_depth, "crop": crop}
    depth_protocol(kind, "", **changed)
    found = open_depths(data, unit=unit)
    protocol = depth_protocol(kind, found.name, **changed)
    loaded = open_model(model, engine="torch", precision=precision, num_heads=num_heads)
    card = head_card(loaded, "depth", kind, min_depth=protocol.min_depth, max_depth=protocol.max_depth)
    with unfinished_work(context, model=loaded, data_hash=found.hash, out=out) as folder:
        head = fitted_head(loaded, card, found, protocol.fit, folder=folder, head_out=head_out)
        with progress_of("measuring") as progress:
            measures = run(
                Predictor(loaded, head),
                found.test,
                min_depth=protocol.min_depth,
                max_depth=protocol.max_depth,
                crop=protocol.crop,
                name="DPT" if kind == "dpt" else kind,
                size=protocol.fit.size,
                flip=protocol.flip,
                seed=seed,
                state=None if folder is None else folder / "measured.safetensors",
                progress=progress,
            )
        report_results(
            context,
            measures,
            protocol=protocol.name,
            model=loaded,
            data=found.name,
            data_hash=found.hash,
            out=out,
            title=f"{card.name}, {len(found.test)} test pictures of {found.name}",
        )
