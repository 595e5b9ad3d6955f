"""`foveal evaluate all`: every protocol whose data is given, one after the other."""

import shlex
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.evaluate.results import SeedOption, check_results
from foveal.cli.loading import ModelOption, NumHeadsOption
from foveal.cli.terminal import print_table
from foveal.errors import FovealError

_WHOLE = ("--steps", "500", "--batch-size", "8", "--size", "224", "--crop-size", "whole")
_INTERRUPTED = 130  # as Typer tells of it

# How often a protocol runs, and with which options; once and with none where nothing else is said.
_FULL: dict[str, list[tuple[str, ...]]] = {
    "linear-cached": [],
    "segment": [("--kind", kind) for kind in ("linear", "ms")],
    "depth": [("--kind", kind) for kind in ("lin.1", "lin.4", "dpt")],
}
_QUICK: dict[str, list[tuple[str, ...]]] = {
    "linear": [],
    "robustness": [],
    "segment": [("--kind", "linear", *_WHOLE)],
    "depth": [("--kind", "lin.1", *_WHOLE)],
}


def all_protocols(
    context: typer.Context,
    model: ModelOption,
    out: Annotated[Path, typer.Option("--out", help="Folder that collects results.")],
    labelled: Annotated[str | None, typer.Option("--labelled", help="Labelled images, as for knn.")] = None,
    segmentation: Annotated[Path | None, typer.Option("--segmentation", help="Pictures with masks.")] = None,
    ignore: Annotated[
        list[int] | None, typer.Option("--ignore", help="Of masks: value that does not count; repeatable.")
    ] = None,
    depth: Annotated[Path | None, typer.Option("--depth", help="Pictures with depth.")] = None,
    unit: Annotated[float | None, typer.Option("--unit", help="Of depth: metres of the value 1 in the files.")] = None,
    retrieval: Annotated[Path | None, typer.Option("--retrieval", help="Images in groups, or revisited sets.")] = None,
    video: Annotated[Path | None, typer.Option("--video", help="DAVIS as distributed.")] = None,
    clips: Annotated[Path | None, typer.Option("--clips", help="train/ and test/ of CLASS/CLIP/ with frames.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Minutes, not hours: features computed once, no published linear protocol.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Also what is in the results already.")] = False,
    seed: SeedOption = 0,
    num_heads: NumHeadsOption = None,
) -> None:
    """Run every protocol whose data is given; what is in the results already is left out, what failed is said."""
    given = {
        "labelled": labelled,
        "segmentation": segmentation,
        "depth": depth,
        "retrieval": retrieval,
        "video": video,
        "clips": clips,
    }
    data = {kind: str(place) for kind, place in given.items() if place is not None}
    _check(data, ignore=ignore, unit=unit)
    check_results(out)
    shared = ["--seed", str(seed), *([] if num_heads is None else ["--num-heads", str(num_heads)])]
    more = {
        "segmentation": [text for value in ignore or () for text in ("--ignore", str(value))],
        "depth": [] if unit is None else ["--unit", str(unit)],
    }
    outcomes = []
    for protocol, options in _planned(data, _QUICK if quick else _FULL):
        kind = _kind_of(protocol)
        arguments = ["--model", model, *_data_options(kind, data[kind]), *options, *more.get(kind, []), *shared]
        typer.echo(f"{protocol} {' '.join(options)}".strip(), err=True)
        outcome = _outcome(context, protocol, [*arguments, "--out", str(out)], again=again)
        outcomes.append((f"{protocol} {' '.join(options[:2])}".strip(), data[kind], outcome))
    print_table(("protocol", "data", "outcome"), outcomes, title=f"{len(outcomes)} evaluations of {model}")
    typer.echo(f"results in {out / 'results.html'}", err=True)
    failed = sum(outcome not in ("measured", "already there") for *_, outcome in outcomes)
    if failed:
        raise FovealError(f"{failed} of {len(outcomes)} evaluations failed; the same command runs only these again")


def _check(data: Mapping[str, str], *, ignore: list[int] | None, unit: float | None) -> None:
    """Refuse, before any evaluation, what would fail after hours."""
    if not data:
        raise FovealError(
            "no data; give at least one of --labelled, --segmentation, --depth, --retrieval, --video, --clips"
        )
    for kind, place in data.items():
        if kind != "labelled" and not Path(place).exists():
            raise FovealError(f"--{kind} {place} does not exist; check the path")
    for option, value, kind in (("--ignore", ignore, "segmentation"), ("--unit", unit, "depth")):
        if value is not None and kind not in data:
            raise FovealError(f"{option} has no effect without --{kind}; add that, or leave it out")


def _planned(
    data: Mapping[str, str], plan: Mapping[str, list[tuple[str, ...]]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    from foveal.cli.evaluate import PROTOCOLS

    for protocol, kind in PROTOCOLS.items():
        if kind in data:
            for options in plan.get(protocol, [()]):
                yield protocol, options


def _kind_of(protocol: str) -> str:
    from foveal.cli.evaluate import PROTOCOLS

    return PROTOCOLS[protocol] or ""


def _data_options(kind: str, place: str) -> list[str]:
    if kind == "clips":
        return ["--train", str(Path(place) / "train"), "--test", str(Path(place) / "test")]
    return ["--data", place]


def _outcome(context: typer.Context, protocol: str, arguments: list[str], *, again: bool) -> str:
    """Run one protocol as the command that measures it alone, whose rows and unfinished work are the same."""
    from foveal.cli.evaluate import evaluate

    words = [protocol, *arguments]
    settings = replace(context.obj, command=shlex.join(["foveal", "evaluate", *words]), skip_finished=not again)
    try:
        code = typer.main.get_command(evaluate).main(
            args=words, prog_name="foveal evaluate", obj=settings, standalone_mode=False
        )
    except Exception as error:  # of one protocol; the others go on
        if settings.debug or not isinstance(error, FovealError | typer.TyperException):
            traceback.print_exc()
        typer.echo(f"error: {error}", err=True)
        return f"failed: {error}" if isinstance(error, FovealError) else f"failed: {type(error).__name__}: {error}"
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    return "measured" if code is None else "already there"
