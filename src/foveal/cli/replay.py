"""`foveal replay`: run a step that was not finite again, and see where it begins."""

import io
from pathlib import Path
from typing import Annotated

import typer

_SHOWN = 12  # findings: what follows the first ones is their consequence


def replay(
    file: Annotated[Path, typer.Argument(help="RUN/replay/step_N.safetensors, as the run names it when it stops.")],
    out: Annotated[Path | None, typer.Option(help="Where the sheet of crops goes; FILE with .png by default.")] = None,
) -> None:
    """Run a step that was not finite again, on the CPU, with the exact crops and weights.

    Prints which tensors stop being finite, the first one first, and the losses and gradient norms beside those of the
    run; writes a sheet of all crops, those in red frames that are not finite by themselves.
    """
    from foveal.cli.terminal import check_file_target, write_file
    from foveal.pretrain.replay import replay as run_again

    target = check_file_target(out or file.with_suffix(".png"))
    found = run_again(file)
    typer.echo(f"step {found.step}, {len(found.images)} images")
    for name in found.recorded:
        typer.echo(f"{name}\t{found.recorded[name]:.6g}\t{found.found.get(name, float('nan')):.6g}")
    same = "the same to the last bit" if found.is_same else "NOT the same: another processor, precision or version"
    typer.echo(f"as the run had it, and now: {same}")
    typer.echo("not finite, in order:" if found.findings else "every tensor is finite")
    for finding in found.findings[:_SHOWN]:
        typer.echo(f"  {finding}")
    if len(found.findings) > _SHOWN:
        typer.echo(f"  and {len(found.findings) - _SHOWN} more")
    if len(found.blamed) == len(found.images):
        typer.echo("every image by itself: look at the weights")
    elif found.blamed:
        typer.echo(f"by themselves: {', '.join(found.blamed)}")
    sheet = io.BytesIO()
    found.sheet.save(sheet, "PNG")
    write_file(target, sheet.getvalue())
    typer.echo(f"crops: {target}")
