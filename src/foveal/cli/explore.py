"""`foveal explore SET`: look at images through their features, on a page in the browser."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveal.cli.pages import HostOption, OpenOption, PortOption, check_can_serve, check_listening, serve_page, source_of
from foveal.cli.terminal import check_outside, progress_of

if TYPE_CHECKING:
    from foveal.features.extract import Model
    from foveal.features.store import FeatureStore
    from foveal.images.imageset import ImageSet

PORT = 8724
FEATURES, SELECTIONS = "features", "selections"
_CHANNELS = 64  # of patches; with int8, 16 KB an image of 256 patches


def explore(
    source: Annotated[
        str, typer.Argument(metavar="SET", help="Images: a folder, list, shards or image set; or a feature store.")
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Model folder, checkpoint, or name in `foveal models`.  [default: the features']"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for selections, and features made here.  [default: NAME-explore]")
    ] = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = PORT,
    open_page: OpenOption = True,
) -> None:
    """Explore images through their features on a page in the browser, until Ctrl-C."""
    check_can_serve()
    from foveal.features.store import CARD, FeatureStore
    from foveal.images.imageset import ImageSet
    from foveal.serve.loaded import open_source
    from foveal.serve.web.explore import explore_page
    from foveal.serve.web.explorer import Explorer

    check_listening(host, port)
    path = Path(source)
    folder = Path(f"{path.resolve().name}-explore") if out is None else out
    store = FeatureStore.open(path) if (path / CARD).is_file() else None
    selections = folder / SELECTIONS
    if store is not None:
        loaded, features = open_source(source_of(model, path, of=source)), store
    else:
        images = ImageSet.open(source)
        check_outside(folder, path)
        loaded = open_source(source_of(model, folder / FEATURES, of=source))
        features = _features(folder / FEATURES, images, loaded.model)
    serve_page(
        loaded,
        folder,
        lambda service: explore_page(Explorer(features, service, selections, name=path.resolve().name)),
        host=host,
        port=port,
        told=lambda address, token: (
            f"explore at {address}?token={token}\nCtrl-C ends; selections are saved in {selections}"
        ),
        open_page=open_page,
    )


def _features(folder: Path, images: "ImageSet", model: "Model") -> "FeatureStore":
    """Make features of images for the page, or go on with those that are there."""
    from foveal.features.extraction import open_extraction
    from foveal.features.stamp import StoreSettings
    from foveal.features.store import FeatureStore

    channels = min(_CHANNELS, model.card.backbone.width - 1)
    settings = StoreSettings(tokens=("cls", "patches"), dtype="int8", pca=channels)
    typer.echo(f"features of {len(images)} images into {folder}; Ctrl-C interrupts, the same command goes on")
    with progress_of("features") as progress:
        open_extraction(folder, model, images, settings).run(max_bad_share=1.0, progress=progress)
    return FeatureStore.open(folder)
