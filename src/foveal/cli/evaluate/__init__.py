"""`foveal evaluate PROTOCOL`: how good a frozen model is; one protocol a file."""

import importlib

import typer

# Each protocol is the function of that name in the module of that name, dashes written as underscores.
PROTOCOLS = (
    "knn",
    "logistic",
    "linear",
    "linear-cached",
    "segment",
    "depth",
    "retrieval",
    "video",
    "video-classify",
    "zero-shot",
    "robustness",
)

evaluate = typer.Typer(help="Measure a frozen model by a public protocol.", no_args_is_help=True)

for _protocol in PROTOCOLS:
    _name = _protocol.replace("-", "_")
    evaluate.command(_protocol)(getattr(importlib.import_module(f"foveal.cli.evaluate.{_name}"), _name))
