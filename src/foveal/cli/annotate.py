"""`foveal annotate PROJECT`: say what images show, on a page in the browser."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.loading import ModelOption
from foveal.cli.terminal import check_outside, progress_of
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.annotate.project import Project
    from foveal.features.extract import Model

PORT = 8723  # the same each time: what a page could not send waits in the browser under this address
TOKEN = "token"


def annotate(
    project: Annotated[Path, typer.Argument(help="Folder of the project; a new one is made.")],
    model: ModelOption,
    images: Annotated[
        str | None, typer.Option(help="Folder, .txt list, shards or saved image set; for a new project.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Feature store of these images.  [default: made in the project]")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = PORT,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Annotate images on a page in the browser until Ctrl-C; every change is kept at once."""
    try:
        from foveal.serve.loaded import Source, open_source
        from foveal.serve.server import serve
        from foveal.serve.service import Service
    except ModuleNotFoundError as error:
        raise FovealError(
            f"{error.name} is not installed; the page needs it: pip install 'foveal[serve,annotate]'"
        ) from error
    from foveal.annotate.adapters.taught import open_features
    from foveal.serve.settings import read_settings
    from foveal.serve.web.annotate import annotate_page
    from foveal.serve.web.annotator import Annotator
    from foveal.serve.web.door import kept_token

    read_settings(given={"host": host, "port": port, "insecure": True}, environment={})
    if images is None and not project.exists():
        raise FovealError(f"{project} does not exist, and a new project needs its images: give --images SET")
    loaded = open_source(Source(model))
    opened = _open_project(project, loaded.model, images)
    token = kept_token(opened.folder / TOKEN)
    settings = read_settings(given={"host": host, "port": port, "api_keys": [token]}, environment={})
    service = Service(loaded, settings)
    with progress_of("features") as progress:
        features = open_features(opened, loaded.model, store, progress=progress)
    page = annotate_page(Annotator(opened, service, features))

    def listening(url: str) -> None:
        address = f"{url}{page.path}?token={token}"
        typer.echo(f"annotate at {address}\nCtrl-C ends; every change is kept in {project}")
        if open_page:
            typer.launch(address)

    serve(service, [page], listening=listening)


def _open_project(folder: Path, model: "Model", images: str | None) -> "Project":
    from foveal.annotate.project import Project
    from foveal.images.imageset import ImageSet

    if images is None:
        return Project.open(folder, model=model)
    check_outside(folder, Path(images))
    found = ImageSet.open(images)
    if not folder.exists():
        return Project.create(folder, found, model=model)
    opened = Project.open(folder, model=model)
    if opened.image_set.hash != found.hash:
        raise FovealError(
            f"{folder} is a project of {opened.num_images} images, and {images} are {len(found)} others, or they have "
            "changed; leave --images out to go on with the project, or make another one"
        )
    return opened
