"""`foveal download`: known checkpoints into the cache, or into a folder for a site without a network."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.terminal import progress_of


def download(
    names: Annotated[list[str], typer.Argument(help="Names in `foveal models`, or https://...", metavar="NAME...")],
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder to keep them in instead of the cache.", file_okay=False)
    ] = None,
) -> None:
    """Fetch checkpoints whole and verified; an interrupted download is continued.

    A folder made with --to is a mirror: set FOVEAL_MIRROR=file:///that/folder where there is no network.
    """
    from foveal.backbone.download import SAID
    from foveal.backbone.download import download as fetch

    for name in names:
        with progress_of(f"{name}, MB") as progress:
            file = fetch(
                name,
                folder=to,
                progress=lambda done, total, show=progress: show(done // 10**6, max(1, (total or 0) // 10**6)),  # type: ignore[misc]
            )
        typer.echo(f"{name}: {file.path}, {file.size_bytes} bytes, {file.sha256} ({SAID[file.verified]})")
