"""What the verbs of curation share: where shards run, and the line that says what a stage did."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from foveal.errors import FovealError

if TYPE_CHECKING:
    from foveal.curate.runner import Runner

StageOption = Annotated[Path, typer.Option("--out", help="Folder of the stage, and the image set that it keeps.")]
WorkersOption = Annotated[int, typer.Option("--workers", help="Processes of this machine.", min=1)]
EngineOption = Annotated[
    Literal["local", "ray"], typer.Option("--engine", help="Where shards run: here, or on a Ray cluster.")
]
RayAddressOption = Annotated[
    str | None, typer.Option("--ray-address", help="Of a cluster.  [default: RAY_ADDRESS or a new one]")
]


def make_runner(workers: int, engine: Literal["local", "ray"], ray_address: str | None) -> "Runner":
    """Return where the shards of a stage run; FovealError for options that have no effect, or without Ray."""
    from foveal.curate.runner import Runner
    from foveal.features.ray_tasks import import_ray

    if engine == "ray":
        if workers != 1:
            raise FovealError(f"--workers {workers} has no effect with --engine ray: the cluster decides; leave it out")
        import_ray()
    elif ray_address is not None:
        raise FovealError("--ray-address has no effect without --engine ray; add that, or leave the address out")
    return Runner(engine=engine, num_workers=workers, ray_address=ray_address)


def print_stage(out: Path, summary: dict[str, Any]) -> None:
    """Print what a finished stage kept and removed, by reason."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary["by_reason"].items())
    removed = f"; removed {summary['num_removed']:,}: {reasons}" if summary["num_removed"] else "; removed none"
    typer.echo(f"wrote {out}: {summary['num_kept']:,} images{removed}")
