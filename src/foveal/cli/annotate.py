"""`foveal annotate PROJECT`: say what images show, on a page in the browser."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.pages import HostOption, OpenOption, PortOption, check_can_serve, check_listening, serve_page, source_of
from foveal.cli.terminal import check_outside, progress_of
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.annotate.project import Project
    from foveal.features.extract import Model
    from foveal.images.imageset import ImageSet

PORT = 8723  # the same each time: what a page could not send waits in the browser under this address


def annotate(
    project: Annotated[Path, typer.Argument(help="Folder of the project; a new one is made.")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Model folder, checkpoint, or name in `foveal models`.  [default: the project's]"),
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Folder, .txt list, shards or saved image set; for a new project.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="Feature store of these images.  [default: made in the project]")
    ] = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = PORT,
    open_page: OpenOption = True,
) -> None:
    """Annotate images on a page in the browser until Ctrl-C; every change is kept at once."""
    check_can_serve("serve,annotate")
    from foveal.annotate.set_features import FEATURES, open_features
    from foveal.serve.loaded import open_source
    from foveal.serve.web.annotate import annotate_page
    from foveal.serve.web.annotator import Annotator

    check_listening(host, port)
    found = _check_project(project, images)
    loaded = open_source(source_of(model, store or project / FEATURES, of=str(project)))
    opened = _open_project(project, loaded.model, found)
    with progress_of("features") as progress:
        features = open_features(opened, loaded.model, store, progress=progress)
    serve_page(
        loaded,
        opened.folder,
        lambda service: annotate_page(Annotator(opened, service, features)),
        host=host,
        port=port,
        told=lambda address, token: (
            f"annotate at {address}?token={token}\nCtrl-C ends; every change is kept in {project}"
        ),
        open_page=open_page,
    )


def _check_project(folder: Path, images: str | None) -> "ImageSet | None":
    """Return the images as given; refuse what can be neither opened nor made, before the model is loaded."""
    from foveal.annotate.creation import DATABASE, check_new_folder
    from foveal.annotate.project import Project
    from foveal.images.imageset import ImageSet

    if (folder / DATABASE).is_file():
        Project.open(folder).close()
    elif images is not None:
        check_outside(folder, Path(images))
        check_new_folder(folder)
    elif not folder.exists():
        raise FovealError(f"{folder} does not exist, and a new project needs its images: give --images SET")
    else:
        raise FovealError(
            f"{folder} is no annotation project, it has no {DATABASE}; give the folder of one, or a new one "
            "and --images"
        )
    return None if images is None else ImageSet.open(images)


def _open_project(folder: Path, model: "Model", images: "ImageSet | None") -> "Project":
    from foveal.annotate.creation import DATABASE
    from foveal.annotate.project import Project

    if images is not None and not (folder / DATABASE).is_file():
        return Project.create(folder, images, model=model)
    opened = Project.open(folder, model=model)
    if images is not None and opened.image_set.hash != images.hash:
        raise FovealError(
            f"{folder} is a project of {opened.num_images} images, and --images are {len(images)} others, or they have "
            "changed; leave --images out to go on with the project, or make another one"
        )
    return opened
