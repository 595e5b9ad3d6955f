"""`foveal backend PROJECT`: answer Label Studio from a project, and keep what people say there."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.loading import ModelOption
from foveal.cli.pages import HostOption, PortOption, check_can_serve, check_listening, serve_page
from foveal.cli.terminal import progress_of

PORT = 9090
TIMEOUT_S = 90.0  # Label Studio waits 100 s for its tasks, up to 100 at once


def backend(
    project: Annotated[Path, typer.Argument(help="Folder of the project; see `foveal annotate`.")],
    model: ModelOption,
    store: Annotated[
        Path | None, typer.Option(help="Feature store of its images.  [default: made in the project]")
    ] = None,
    precision: Annotated[float, typer.Option(help="Wanted of answers, above 0 and below 1.")] = 0.9,
    host: HostOption = "127.0.0.1",
    port: PortOption = PORT,
) -> None:
    """Be Label Studio's machine learning backend for a project until Ctrl-C; see docs/formats.md."""
    from foveal.annotate.calibration import check_precision
    from foveal.annotate.project import Project

    check_precision(precision)
    check_listening(host, port)
    check_can_serve("serve,annotate")
    from foveal.annotate.adapters.label_studio import LabelStudioBackend
    from foveal.annotate.adapters.taught import Taught
    from foveal.annotate.set_features import open_features
    from foveal.serve.label_studio import label_studio_page
    from foveal.serve.loaded import Source, open_source

    Project.open(project).close()
    loaded = open_source(Source(model))
    with Project.open(project, model=loaded.model) as opened:
        with progress_of("features") as progress:
            features = open_features(opened, loaded.model, store, progress=progress)
        taught = Taught(opened, loaded.model, features, precision=precision)
        serve_page(
            loaded,
            opened.folder,
            lambda service: label_studio_page(LabelStudioBackend(taught), service),
            host=host,
            port=port,
            told=_told,
            timeout_s=TIMEOUT_S,
        )


def _told(address: str, token: str) -> str:
    return (
        f"backend at {address}\nbasic authentication: user foveal, password {token}\n"
        "webhook: in Label Studio, Settings, Webhooks, give it the header X-API-Key with that password"
    )
