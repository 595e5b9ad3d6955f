"""The command `foveal`: one verb a file, errors without tracebacks."""

import importlib
import logging
import os
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, Any

import typer

import foveal
from foveal.cli.evaluate import PROTOCOLS
from foveal.cli.export import FORMATS
from foveal.cli.terminal import is_first_process
from foveal.errors import FovealError, nearest

# Each verb is the function of that name in the module of that name, or a Typer of several; heavy imports are inside.
VERBS = (
    "demo",
    "pretrain",
    "adapt",
    "advise",
    "checkpoint",
    "replay",
    "models",
    "download",
    "doctor",
    "convert",
    "annotations",
    "backend",
    "propagate",
    "curate",
    "audit",
    "extract",
    "index",
    "dedup",
    "cluster",
    "retrieve",
    "sample",
    "search",
    "head",
    "finetune",
    "export",
    "evaluate",
    "compare",
    "pca",
    "attention",
    "match",
    "similar",
    "serve",
    "annotate",
    "explore",
)

INTERRUPTED, TERMINATED = 130, 143  # as a shell tells of SIGINT and SIGTERM


@dataclass
class Settings:
    """What the options before the verb say, and the whole command as it was typed.

    Attributes:
        debug: show tracebacks.
        command: as typed, or as it would be where one command runs others.
        skip_finished: leave out an evaluation whose rows are there.
    """

    debug: bool = False
    command: str = "foveal"
    skip_finished: bool = False


app = typer.Typer(
    help="From a pile of unlabelled images to a frozen vision backbone that works.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"foveal {foveal.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    context.ensure_object(Settings).debug = debug


for _verb in VERBS:
    _found = getattr(importlib.import_module(f"foveal.cli.{_verb}"), _verb)
    app.add_typer(_found, name=_verb) if isinstance(_found, typer.Typer) else app.command(_verb)(_found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for an error of the user, 3 where a gate has ended
    the run, 130 when interrupted.

    Args:
        arguments: without the program's name; None takes those of the process.
    """
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("foveal").setLevel(logging.INFO if is_first_process() else logging.ERROR)
    options = list(sys.argv[1:] if arguments is None else arguments)
    settings = Settings(command=shlex.join(["foveal", *options]))
    try:
        with _terminated_as_exit():
            code = app(args=options, prog_name="foveal", obj=settings, standalone_mode=False)
    except (FovealError, typer.TyperException) as error:
        if settings.debug:
            traceback.print_exc()
        text = explain_usage(error) if isinstance(error, typer.TyperException) else f"error: {error}"
        typer.echo(text, err=True)
        return 2
    except SystemExit as end:
        if end.code != TERMINATED:
            raise
        typer.echo("terminated", err=True)
        return TERMINATED
    if code == INTERRUPTED:
        typer.echo("interrupted", err=True)
    return code if isinstance(code, int) else 0


@contextmanager
def _terminated_as_exit() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that what a verb was writing is removed; at once in processes forked off it."""
    pid = os.getpid()

    def end(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != pid:
            os._exit(TERMINATED)
        signal.signal(number, signal.SIG_DFL)  # a second one does not wait
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # whoever runs us there handles signals
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def explain_usage(error: typer.TyperException) -> str:
    """Return one line, as of other errors, for options that could not be understood; the help where nothing was typed.

    Of a value that is none of the allowed ones, the nearest of them is named.
    """
    message = error.format_message()
    if message.startswith("Usage:"):  # `foveal` alone
        return message
    message = message.replace("Value error, ", "").rstrip(".")
    if found := re.search(r"'([^']*)' is not one of ('.*')$", message):
        message += nearest(found[1], re.findall(r"'([^']*)'", found[2]))
    context = getattr(error, "ctx", None)
    if found := re.search(r"^No such command '([^']*)'", message):
        message = f"No such command '{found[1]}'{_instead_of(found[1], context)}"
    return f"error: {message}" + (f"; see {context.command_path} --help" if context else "")


def _instead_of(verb: str, context: Any) -> str:
    """Return what somebody may have meant who typed an unknown verb, or an unknown part of one, such as a format."""
    if context is not None and context.parent is not None:
        return nearest(verb, context.command.commands)
    if verb in FORMATS:
        return f"; it is foveal export {verb}"
    if verb in PROTOCOLS:
        return f"; it is foveal evaluate {verb}"
    if verb == "distill":
        return "; it is foveal pretrain --recipe distill_vits14 (docs/distill.md)"
    return nearest(verb, VERBS)
