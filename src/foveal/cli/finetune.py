"""`foveal finetune`: train a backbone and a head together, for labels, masks or depth."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from foveal.cli.evaluate.results import SeedOption
from foveal.cli.head import DataOption, IgnoreOption, SizeOption, UnitOption
from foveal.cli.head_classes import of_classes
from foveal.cli.loading import ModelOption, NumHeadsOption, parse_size
from foveal.cli.terminal import typed_options
from foveal.cli.training import training_progress
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.backbone.card import Card
    from foveal.features.extract import Model
    from foveal.finetune.data import Batches
    from foveal.finetune.settings import FinetuneSettings
    from foveal.images.imageset import ImageSet
    from foveal.pretrain.start.weights import StartWeights
    from foveal.tasks.head import Head, Task
    from foveal.tasks.samples import DenseSet


def finetune(
    context: typer.Context,
    task: Annotated[Literal["classification", "segmentation", "depth"], typer.Argument(help="What the head answers.")],
    kind: Annotated[
        str | None,
        typer.Argument(help="Of the head, as for foveal head fit; left out with --head.", show_default=False),
    ] = None,
    *,
    model: ModelOption,
    data: DataOption,
    out: Annotated[Path, typer.Option("--out", help="Run folder; its model/ and head/ are the result.")],
    head: Annotated[
        Path | None,
        typer.Option("--head", help="A head to begin with: a folder, or a public file.  [default: a new one]"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer updates.")] = 2000,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Pictures a step.  [default: 8; labels 32]")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of the backbone's end.  [default: 5e-6; labels and --lora 1e-4]")
    ] = None,
    head_multiplier: Annotated[
        float | None, typer.Option(help="Times as fast a head.  [default: 10; labels 1]")
    ] = None,
    layer_decay: Annotated[
        float | None, typer.Option(help="Learning rate of a block, as a share of the next.  [default: 1; labels 0.75]")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW.  [default: 0.01; labels 0.05]")] = None,
    warm_up: Annotated[
        float | None, typer.Option(help="Share of the steps in which rates rise.  [default: 0; labels 0.05]")
    ] = None,
    drop_path: Annotated[float | None, typer.Option(help="Rate of stochastic depth.  [default: 0; labels 0.1]")] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Labels: share that is spread over all classes.  [default: 0.1]")
    ] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient.  [default: none]")] = None,
    lora: Annotated[
        int | None, typer.Option("--lora", min=1, help="Train low-rank changes of this rank in place of all weights.")
    ] = None,
    freeze_blocks: Annotated[int, typer.Option(min=0, help="So many first blocks stay as they are.")] = 0,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Run blocks twice: far less memory, a third more time.")
    ] = False,
    crop_size: Annotated[
        str | None, typer.Option(help="Of random crops, pixels: 518 or 416x544.  [default: the model's]")
    ] = None,
    size: SizeOption = None,
    distort: Annotated[bool, typer.Option(help="Change the colours of crops; turn those of depth a little.")] = True,
    ignore: IgnoreOption = None,
    unit: UnitOption = None,
    max_depth: Annotated[
        float | None, typer.Option(help="Depth: end of the range, metres.  [default: 10; with --head, its own]")
    ] = None,
    precision: Annotated[Literal["fp32", "bf16"], typer.Option(help="Of the backbone's products.")] = "fp32",
    save_every_s: Annotated[float, typer.Option(min=0.0, help="Seconds between checkpoints.")] = 300.0,
    num_heads: NumHeadsOption = None,
    seed: SeedOption = 0,
) -> None:
    """Fine-tune a backbone with a head; the same command goes on where it was interrupted."""
    from foveal.finetune.folder import check_out
    from foveal.finetune.loop import new_head
    from foveal.finetune.settings import finetune_settings
    from foveal.finetune.start import open_model, with_crop_size
    from foveal.tasks.kinds import head_card

    _check_options(context, task, kind, head)
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
        label_smoothing=label_smoothing,
        clip=clip,
        lora_rank=lora,
        freeze_blocks=freeze_blocks,
        crop_size=parse_size(crop_size, option="--crop-size"),
        size=size,
        distort=distort,
        recompute=recompute,
        precision=precision,
        save_every_s=save_every_s,
        seed=seed,
    )
    found = _open_data(task, data, ignore=ignore, unit=unit)
    start, loaded = open_model(model, num_heads=num_heads)
    settings = with_crop_size(settings, start.card)
    batches = _batches(found, settings, start.card)
    if head is None:
        classes = batches.classes
        card = head_card(loaded, task, str(kind), classes=classes, max_depth=10.0 if max_depth is None else max_depth)
        begun = new_head(card, seed=seed)
    else:
        begun = _given_head(head, loaded, task, batches.classes, data=data, max_depth=max_depth)
    _train(start, begun, batches, settings, out)


_DENSE = ("--size", "--distort", "--ignore", "--unit", "--max-depth")
_WITHOUT_EFFECT = {
    "classification": _DENSE,
    "segmentation": ("--unit", "--max-depth", "--label-smoothing"),
    "depth": ("--ignore", "--label-smoothing"),
}


def _check_options(context: typer.Context, task: "Task", kind: str | None, head: Path | None) -> None:
    """Refuse options that contradict each other or have no effect, before anything is opened that takes long."""
    from foveal.tasks.head import load_head
    from foveal.tasks.kinds import KINDS, find_kind

    if wrong := [option for option in typed_options(context) if option in _WITHOUT_EFFECT[task]]:
        raise FovealError(f"{wrong[0]} has no effect on {task}; leave it out")
    if head is not None and kind is not None:
        raise FovealError(f"the kind is that of --head {head}; leave it out")
    if head is not None:
        if not head.is_file():
            load_head(head)
    elif kind is not None:
        find_kind(task, kind)
    else:
        kinds = ", ".join(KINDS[task])
        raise FovealError(f"which {task} head? choose {kinds}; or give one that is fitted, as --head")


def _open_data(task: "Task", data: str, *, ignore: list[int] | None, unit: float | None) -> "ImageSet | DenseSet":
    """Open the train pictures."""
    from foveal.evaluate.layouts.classification import open_classification
    from foveal.evaluate.layouts.dense import open_depths, open_masks

    if task == "classification":
        return open_classification(data).train
    return (open_masks(data, ignored=ignore) if task == "segmentation" else open_depths(data, unit=unit)).train


def _batches(found: "ImageSet | DenseSet", settings: "FinetuneSettings", card: "Card") -> "Batches":
    import torch

    from foveal.finetune.data import DenseBatches, LabelledBatches
    from foveal.images.imageset import ImageSet

    num_threads = max(2, torch.get_num_threads())
    if isinstance(found, ImageSet):
        return LabelledBatches(found, settings, card, num_threads=num_threads)
    return DenseBatches(found, settings, card, num_threads=num_threads)


def _given_head(
    folder: Path, model: "Model", task: "Task", classes: list[str], *, data: str, max_depth: float | None
) -> "Head":
    """Return the head to begin with; refuse one of another task, backbone or other classes, and relative depth."""
    from foveal.tasks.head import check_backbone
    from foveal.tasks.public_heads import open_head

    found = open_head(folder, model, max_depth=max_depth)
    if found.card.task != task:
        raise FovealError(f"{folder} is a head for {found.card.task}; foveal finetune {found.card.task} takes it")
    check_backbone(found.card, model)
    if task == "depth" and found.card.settings.get("max_depth") is None:
        raise FovealError(f"{folder} answers relative depth, in no unit; give a kind in its place, for a new head")
    return found if task == "depth" else of_classes(found, classes, data)


def _train(start: "StartWeights", head: "Head", batches: "Batches", settings: "FinetuneSettings", out: Path) -> None:
    """Train, tell how it goes and how it ended, and leave with the exit code of that."""
    import torch

    from foveal.finetune.loop import finetune

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
