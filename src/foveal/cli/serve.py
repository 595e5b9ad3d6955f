"""`foveal serve MODEL`: a model behind HTTP."""

from pathlib import Path
from typing import Annotated, Any

import typer

from foveal.cli.loading import EngineOption, FastOption, NumHeadsOption, PrecisionOption
from foveal.errors import FovealError


def serve(
    model: Annotated[str, typer.Argument(help="Model folder, checkpoint, or name in `foveal models`.")],
    head: Annotated[
        list[str] | None, typer.Option("--head", help="Head folder, or NAME=FOLDER; repeatable.", metavar="FOLDER")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Feature store to search.")] = None,
    images: Annotated[
        str | None, typer.Option(help="Pictures like those to come, to choose the engine on.  [default: generated]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the model, in requests.  [default: its card's]")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="0 takes a free one.  [default: 8000]")] = None,
    settings: Annotated[Path | None, typer.Option(help="YAML file of settings; see docs/serve.md.")] = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting, such as max_batch=16; repeatable.", metavar="KEY=VALUE"),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen to other computers without keys.")] = False,
    engine: EngineOption = "auto",
    precision: PrecisionOption = None,
    fast: FastOption = False,
    num_heads: NumHeadsOption = None,
    accept_licence: Annotated[
        str | None, typer.Option("--accept-licence", help="Name of a licence whose terms you accept for serving.")
    ] = None,
) -> None:
    """Serve embeddings, features and heads over HTTP until SIGTERM or Ctrl-C."""
    from foveal.serve.settings import read_settings

    typed: dict[str, Any] = {"host": host, "port": port, "insecure": insecure or None}
    found = read_settings(
        settings, given={key: value for key, value in typed.items() if value is not None}, overrides=change or []
    )
    try:
        from foveal.serve.loaded import Source, open_source
        from foveal.serve.server import serve as run
        from foveal.serve.service import Service
    except ModuleNotFoundError as error:
        raise FovealError(f"{error.name} is not installed; serving needs it: pip install 'foveal[serve]'") from error
    source = Source(
        model,
        heads=tuple(head or ()),
        store=store,
        images=images,
        name=name,
        engine=engine,
        precision=precision,
        fast=fast,
        num_heads=num_heads,
        accept_licence=accept_licence,
    )
    run(Service(open_source(source, buckets=found.buckets), found))
