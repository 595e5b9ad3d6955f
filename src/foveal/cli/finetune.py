"""`foveal finetune`: train a backbone and a head together, for masks or depth."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from foveal.cli.evaluate.results import SeedOption
from foveal.cli.head import DataOption, IgnoreOption, SizeOption, UnitOption
from foveal.cli.loading import ModelOption, parse_size
from foveal.cli.terminal import typed_options
from foveal.cli.training import training_progress
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.finetune.settings import FinetuneSettings
    from foveal.tasks.head import Head, Task


def finetune(
    context: typer.Context,
    task: Annotated[Literal["segmentation", "depth"], typer.Argument(help="What the head answers.")],
    kind: Annotated[
        str | None,
        typer.Argument(help="Of the head, as for foveal head fit; left out with --head.", show_default=False),
    ] = None,
    *,
    model: ModelOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Run folder; its model/ and head/ are the result.")],
    head: Annotated[
        Path | None, typer.Option("--head", help="A head fitted on the model, to begin with.  [default: a new one]")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer updates.")] = 2000,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pictures a step.")] = 8,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the backbone's last block.  [default: 5e-6; with --lora 1e-4]")
    ] = None,
    head_multiplier: Annotated[float | None, typer.Option(help="Times as fast a head.  [default: 10]")] = None,
    layer_decay: Annotated[
        float | None, typer.Option(help="Learning rate of a block, as a share of that above it.  [default: 1]")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW.  [default: 0.01]")] = None,
    warm_up: Annotated[float | None, typer.Option(help="Share of the steps in which rates rise.  [default: 0]")] = None,
    drop_path: Annotated[float | None, typer.Option(help="Rate of stochastic depth.  [default: 0]")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient.  [default: none]")] = None,
    lora: Annotated[
        int | None, typer.Option("--lora", min=1, help="Train low-rank changes of this rank in place of all weights.")
    ] = None,
    freeze_blocks: Annotated[int, typer.Option(min=0, help="So many first blocks stay as they are.")] = 0,
    crop_size: Annotated[
        str | None, typer.Option(help="Of random crops, pixels: 518 or 416x544.  [default: the model's]")
    ] = None,
    size: SizeOption = None,
    distort: Annotated[bool, typer.Option(help="Change the colours of crops; turn those of depth a little.")] = True,
    ignore: IgnoreOption = None,
    unit: UnitOption = 0.001,
    max_depth: Annotated[float, typer.Option(help="Depth: end of the range of a new head, metres.")] = 10.0,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="Of the backbone's products.")] = "fp32",
    save_every_s: Annotated[float, typer.Option(min=0.0, help="Seconds between checkpoints.")] = 300.0,
    seed: SeedOption = 0,
) -> None:
    """Fine-tune a backbone with a head; the same command goes on where it was interrupted."""
    from foveal.finetune.folder import check_out
    from foveal.finetune.settings import finetune_settings

    given = _starting_head(context, task, kind, head)
    check_out(out)
    settings = finetune_settings(
        task,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        head_multiplier=head_multiplier,
        layer_decay=layer_decay,
        weight_decay=weight_decay,
        warm_up=warm_up,
        drop_path=drop_path,
        clip=clip,
        lora_rank=lora,
        freeze_blocks=freeze_blocks,
        crop_size=parse_size(crop_size, option="--crop-size"),
        size=size,
        distort=distort,
        precision=precision,
        save_every_s=save_every_s,
        seed=seed,
    )
    _run(task, kind, given, settings, model=model, data=data, out=out, ignore=ignore, unit=unit, max_depth=max_depth)


def _starting_head(context: typer.Context, task: "Task", kind: str | None, folder: Path | None) -> "Head | None":
    """Return the head to begin with, None for a new one; refuse options that contradict it or have no effect."""
    from foveal.tasks.head import load_head
    from foveal.tasks.kinds import find_kind

    others = ("--unit", "--max-depth") if task == "segmentation" else ("--ignore",)
    typed = typed_options(context)
    if wrong := [option for option in typed if option in others]:
        raise FovealError(f"{wrong[0]} has no effect on {task}; leave it out")
    if folder is None:
        if kind is None:
            raise FovealError(f"which {task} head? give its kind, as in foveal finetune {task} dpt, or a fitted --head")
        find_kind(task, kind)
        return None
    if kind is not None or "--max-depth" in typed:
        raise FovealError(f"{'the kind' if kind else '--max-depth'} is that of --head {folder}; leave it out")
    found = load_head(folder)
    if found.card.task != task:
        raise FovealError(f"{folder} is a head for {found.card.task}; foveal finetune {found.card.task} takes it")
    return found


def _run(
    task: "Task",
    kind: str | None,
    head: "Head | None",
    settings: "FinetuneSettings",
    *,
    model: str,
    data: str,
    out: Path,
    ignore: list[int] | None,
    unit: float,
    max_depth: float,
) -> None:
    import torch

    from foveal.evaluate.layouts.dense import open_depths, open_masks
    from foveal.finetune.data import DenseBatches
    from foveal.finetune.loop import finetune, new_head
    from foveal.finetune.start import check_classes, open_model, with_crop_size
    from foveal.tasks.head import check_backbone
    from foveal.tasks.kinds import head_card

    found = open_masks(data, ignored=ignore or (255,)) if task == "segmentation" else open_depths(data, unit=unit)
    start, loaded = open_model(model)
    settings = with_crop_size(settings, start.card)
    if head is None:
        card = head_card(loaded, task, str(kind), classes=found.classes, max_depth=max_depth)
        head = new_head(card, seed=settings.seed)
    check_backbone(head.card, loaded)
    check_classes(head.card, found.classes, data=data)
    batches = DenseBatches(found.train, settings, start.card)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with training_progress() as listener:
        outcome = finetune(start, head, batches, settings, out=out, device=device, listener=listener)
    done = f"step {outcome.step} of {settings.steps}"
    if outcome.stopped_by is None:
        typer.echo(f"{done}; model: {out / 'model'}  head: {out / 'head'}")
        return
    typer.echo(f"stopped and saved at {done}; run the same command again to continue")
    if outcome.stopped_by == signal.SIGINT:
        raise typer.Exit(128 + signal.SIGINT)  # as a shell tells it; a batch system that asked for the end sees success
