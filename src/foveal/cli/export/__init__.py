"""`foveal export FORMAT`: a model for other runtimes; one format a file."""

import importlib

import typer

# Each format is the function of that name in the module of that name.
FORMATS = ("onnx", "openvino", "tensorrt", "huggingface", "tower", "triton")

export = typer.Typer(help="Write a model, with its heads, for another runtime.", no_args_is_help=True)

for _format in FORMATS:
    export.command(_format)(getattr(importlib.import_module(f"foveal.cli.export.{_format}"), _format))
