"""`foveal search`: the images of a store that are most similar to pictures or to its own rows."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from foveal.cli.loading import NumHeadsOption
from foveal.cli.terminal import check_file_target, typed_options, write_file
from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.features.lookup import SearchResult


def search(
    context: typer.Context,
    store: Annotated[Path, typer.Argument(help="Feature store.", exists=True, file_okay=False)],
    queries: Annotated[list[str], typer.Argument(help="Image files, or images of the store: row:12, uri:cats/7.jpg.")],
    model: Annotated[
        str | None, typer.Option(help="Where the model of the store lies now, for image files.  [default: as then]")
    ] = None,
    num_heads: NumHeadsOption = None,
    k: Annotated[int, typer.Option("--k", "-k", help="Neighbours of each query.", min=1)] = 10,
    exact: Annotated[bool, typer.Option("--exact", help="Compare every row.  [default to a million rows]")] = False,
    ann: Annotated[bool, typer.Option("--ann", help="Use the index.  [default beyond, where there is one]")] = False,
    index: Annotated[Path | None, typer.Option(help="Index folder, where it is not beside the store.")] = None,
    token: Annotated[str | None, typer.Option(help="Which vectors: cls, mean, cls.layer5.  [default: cls]")] = None,
    precision: Annotated[
        Literal["fp32", "bf16"], typer.Option(help="Time of an exact search, not its answer.")
    ] = "fp32",
    device: Annotated[str, typer.Option(help="Of an exact search: cpu or cuda.")] = "cpu",
    png: Annotated[Path | None, typer.Option(help="Also draw the pictures here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page with the pictures here.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write the results here.")] = None,
) -> None:
    """Find the most similar images of a store, with their cosine; exactly, or by an index."""
    if exact and (ann or index is not None):
        raise FovealError("--exact and the index exclude each other; leave one of them out")
    if ann or index is not None:
        for name in ("--precision", "--device"):
            if name in typed_options(context):
                raise FovealError(f"{name} is of an exact search and has no effect beside --ann; leave one of them out")
    for path in (png, html, json_path):
        if path is not None:
            check_file_target(path)
    from foveal.features.gallery import gallery, page, query_title, sheet
    from foveal.features.lookup import search_store
    from foveal.features.store import FeatureStore

    if png is not None and png.suffix.lower() != ".png":
        raise FovealError(f"--png {png}: choose a name that ends in .png")
    opened = FeatureStore.open(store)
    result = search_store(
        opened,
        queries,
        model=model,
        num_heads=num_heads,
        k=k,
        name=token,
        method="exact" if exact else "ann" if ann or index is not None else "auto",
        index=index,
        precision=precision,
        device=device,
    )
    typer.echo(result.how, err=True)
    _print_result(result)
    if json_path is not None:
        found = [
            {"query": query_title(query), "neighbours": _neighbours(result, number)}
            for number, query in enumerate(result.queries)
        ]
        report = {"store": str(store), "stamp": opened.stamp, "how": result.how, "results": found}
        write_file(json_path, (json.dumps(report, indent=2) + "\n").encode())
    if png is not None or html is not None:
        lines = gallery(opened, result)
        if png is not None:
            data = io.BytesIO()
            sheet(lines).save(data, "PNG", optimize=True)
            write_file(png, data.getvalue())
        if html is not None:
            write_file(html, page(lines, title=f"Search in {store.name}", how=result.how).encode())


def _neighbours(result: "SearchResult", number: int) -> list[dict[str, object]]:
    columns = result.rows[number].tolist(), result.similarities[number].tolist(), result.uris[number]
    return [
        {"rank": rank, "similarity": similarity, "row": row, "uri": uri}
        for rank, (row, similarity, uri) in enumerate(zip(*columns, strict=True), start=1)
    ]


def _print_result(result: "SearchResult") -> None:
    """Print a table a query on a terminal; else lines of query, rank, similarity, row and uri between tabs."""
    from foveal.features.gallery import query_title

    for number, query in enumerate(result.queries):
        found = _neighbours(result, number)
        if sys.stdout.isatty():
            _print_table(query_title(query), found)
            continue
        for one in found:
            typer.echo(f"{query_title(query)}\t{one['rank']}\t{one['similarity']:.4f}\t{one['row']}\t{one['uri']}")


def _print_table(title: str, found: Sequence[dict[str, object]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for column in ("rank", "similarity", "row"):
        table.add_column(column, justify="right")
    table.add_column("uri")
    for one in found:
        table.add_row(str(one["rank"]), f"{one['similarity']:.4f}", str(one["row"]), Text(str(one["uri"])))
    Console().print(table)
