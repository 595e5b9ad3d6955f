"""`foveal backend PROJECT`: answer Label Studio from a project, and keep what people say there."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.loading import ModelOption
from foveal.cli.terminal import progress_of
from foveal.errors import FovealError

PORT = 9090
TIMEOUT_S = 90.0  # Label Studio waits 100 s for its tasks, up to 100 at once
TOKEN = "token"


def backend(
    project: Annotated[Path, typer.Argument(help="Folder of the project; see `foveal annotate`.")],
    model: ModelOption,
    store: Annotated[
        Path | None, typer.Option(help="Feature store of its images.  [default: made in the project]")
    ] = None,
    precision: Annotated[float, typer.Option(help="Wanted of answers, above 0 and below 1.")] = 0.9,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = PORT,
) -> None:
    """Be Label Studio's machine learning backend for a project until Ctrl-C; see docs/formats.md."""
    from foveal.annotate.calibration import check_precision
    from foveal.annotate.project import Project
    from foveal.serve.settings import read_settings

    check_precision(precision)
    read_settings(given={"host": host, "port": port, "insecure": True}, environment={})
    try:
        from foveal.serve.label_studio import label_studio_page
        from foveal.serve.loaded import Source, open_source
        from foveal.serve.server import serve
        from foveal.serve.service import Service
    except ModuleNotFoundError as error:
        raise FovealError(
            f"{error.name} is not installed; the backend needs it: pip install 'foveal[serve,annotate]'"
        ) from error
    from foveal.annotate.adapters.label_studio import LabelStudioBackend
    from foveal.annotate.adapters.taught import Taught, open_features
    from foveal.serve.web.door import kept_token

    Project.open(project).close()
    loaded = open_source(Source(model))
    with Project.open(project, model=loaded.model) as opened:
        with progress_of("features") as progress:
            features = open_features(opened, loaded.model, store, progress=progress)
        taught = Taught(opened, loaded.model, features, precision=precision)
        token = kept_token(opened.folder / TOKEN)
        given = {"host": host, "port": port, "api_keys": [token], "timeout_s": TIMEOUT_S}
        settings = read_settings(given=given, environment={})
        service = Service(loaded, settings)
        page = label_studio_page(LabelStudioBackend(taught), service)

        def listening(url: str) -> None:
            typer.echo(f"backend at {url}{page.path}\nbasic authentication: user foveal, password {token}")

        serve(service, [page], listening=listening)
