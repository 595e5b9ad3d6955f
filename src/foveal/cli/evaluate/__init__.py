"""`foveal evaluate PROTOCOL`: how good a frozen model is; one protocol a file."""

import importlib

import typer

from foveal.cli.evaluate import all_protocols

# Each protocol is the function of that name in the module of that name, dashes written as underscores. Beside it stands
# the option of `foveal evaluate all` that gives its data; None: it is left out there.
PROTOCOLS = {
    "knn": "labelled",
    "logistic": "labelled",
    "linear": "labelled",
    "linear-cached": "labelled",
    "robustness": "labelled",
    "segment": "segmentation",
    "depth": "depth",
    "retrieval": "retrieval",
    "video": "video",
    "video-classify": "clips",
    "zero-shot": None,
}

evaluate = typer.Typer(help="Measure a frozen model by a public protocol.", no_args_is_help=True)

for _protocol in PROTOCOLS:
    _name = _protocol.replace("-", "_")
    evaluate.command(_protocol)(getattr(importlib.import_module(f"foveal.cli.evaluate.{_name}"), _name))

evaluate.command("all")(all_protocols.all_protocols)
