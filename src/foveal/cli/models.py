"""`foveal models`: the known public checkpoints, their licences, and which are here."""

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foveal.backbone.hub import Checkpoint

COLUMNS = ("name", "kind", "parameters", "patch", "licence", "size", "sha256", "here")


def models(
    name: Annotated[str | None, typer.Argument(help="Show one in full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the known checkpoints: kind, parameters, licence, size, hash, and whether each is in the cache."""
    from foveal.backbone.hub import CHECKPOINTS, checkpoint

    rows = [checkpoint(name)] if name else list(CHECKPOINTS.values())
    if as_json:
        listed = [_as_json(row) for row in rows]
        typer.echo(json.dumps(listed[0] if name else listed, indent=2))
    elif name:
        _print_one(rows[0])
    else:
        _print_table(rows)


def _print_table(rows: "list[Checkpoint]") -> None:
    from foveal.backbone.download import checkpoints_folder

    lines = [_cells(row, is_here=_is_here(row)) for row in rows]
    if not sys.stdout.isatty():
        for cells in (COLUMNS, *lines):
            typer.echo("\t".join(cells))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, title=Text(f"Known checkpoints; here: {checkpoints_folder()}"))
    for column in COLUMNS:
        table.add_column(column, no_wrap=column == "name")
    for cells in lines:
        table.add_row(*(Text(cell) for cell in cells))
    Console().print(table)


def _print_one(row: "Checkpoint") -> None:
    from foveal.backbone.download import SAID
    from foveal.backbone.licence import FREE

    free = row.licence.terms in FREE
    about = "about " if row.rounded else ""
    if row.sha256:
        vouched = f"{row.sha256} ({SAID[row.hash_source or 'pinned']})"
    else:
        vouched = "not published; the first download is pinned" if row.url else "not published"
    values = {
        "name": row.name,
        "kind": row.kind + (f" of {row.belongs_to}" if row.belongs_to else ""),
        "parameters": "unknown" if row.parameters is None else f"{about}{row.parameters:,}",
        "patch size": "none" if row.patch_size is None else f"{row.patch_size} pixels",
        "licence": f"{row.licence.name} ({row.licence.terms} terms), {row.licence.url}",
        "export and serve": "free" if free else f"once '{row.licence.name}' is accepted by name",
        "url": row.url or f"on request only, at {row.source}",
        "source": row.source,
        "size": "unknown" if row.size_bytes is None else f"{row.size_bytes:,} bytes",
        "sha256": vouched,
        "in the cache": _where(row),
    }
    for key, value in values.items():
        typer.echo(f"{key + ':':20}{value}")


def _cells(row: "Checkpoint", *, is_here: bool) -> tuple[str, ...]:
    return (
        row.name,
        row.kind,
        "unknown" if row.parameters is None else f"{row.parameters / 1e6:,.2f} M",
        "-" if row.patch_size is None else str(row.patch_size),
        row.licence.name,
        "unknown" if row.size_bytes is None else f"{row.size_bytes / 1e6:,.1f} MB",
        row.sha256[:12] if row.sha256 else "not published",
        "yes" if is_here else ("no" if row.url else "on request"),
    )


def _is_here(row: "Checkpoint") -> bool:
    """Whether the file is there; `foveal models NAME` also checks that it is whole."""
    from foveal.backbone.download import checkpoints_folder

    return row.file_name is not None and (checkpoints_folder() / row.file_name).is_file()


def _where(row: "Checkpoint") -> str:
    from foveal.backbone.download import SAID, cached

    found = cached(row.name) if row.url else None
    if found:
        return f"{found.path} ({found.sha256[:12]}, {SAID[found.verified]})"
    return "damaged; it will be fetched again" if _is_here(row) else "no"


def _as_json(row: "Checkpoint") -> dict[str, object]:
    values = asdict(row) | {"licence": row.licence.model_dump(exclude={"accepted"}), "in_cache": _is_here(row)}
    values["backbone"] = row.backbone.model_dump() if row.backbone else None
    return values
