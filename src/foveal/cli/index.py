"""`foveal index`: an approximate index beside a feature store, for searches of more than a million rows."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.terminal import progress_of


def index(
    store: Annotated[Path, typer.Argument(help="Feature store.", exists=True, file_okay=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write.  [default: beside the store, where search finds it]")
    ] = None,
    token: Annotated[str | None, typer.Option(help="Which vectors: cls, mean, cls.layer5.  [default: cls]")] = None,
    min_recall: Annotated[float, typer.Option(help="Least recall@10 to accept; searches are set to exceed it.")] = 0.95,
) -> None:
    """Build an index of a store, measure its recall against exact search, and refuse it where that is too low."""
    from foveal.features.index import build_index, check_target
    from foveal.features.lookup import database_of, identity_of, index_folder, vector_name
    from foveal.features.store import FeatureStore

    opened = FeatureStore.open(store)
    name = vector_name(opened, token)
    folder = check_target(out or index_folder(opened, name))
    with progress_of("indexing") as progress:
        card = build_index(
            database_of(opened, name),
            folder,
            identity=identity_of(opened, name),
            min_recall=min_recall,
            progress=progress,
        )
    recall, parameters = card["recall"], card["parameters"]
    typer.echo(
        f"wrote {folder}: {card['num_rows']:,} rows of {name} in {parameters['num_lists']} lists, "
        f"{parameters['num_probed']} read by a search; recall@{recall['k']} {recall['value']:.3f} "
        f"on {recall['num_queries']} queries"
    )
