"""`foveal export FORMAT`: a model for other runtimes; one format a file, and `verify`."""

import importlib

import typer

# Each format, and `verify`, is the function of that name in the module of that name.
FORMATS = ("onnx", "openvino", "tensorrt", "huggingface", "tower", "triton")
COMMANDS = (*FORMATS, "verify")

export = typer.Typer(help="Write a model, with its heads, for another runtime.", no_args_is_help=True)

for _command in COMMANDS:
    export.command(_command)(getattr(importlib.import_module(f"foveal.cli.export.{_command}"), _command))
