"""One curation as a command runs it: the folder of the result, its recipe, its summary and its page."""

import json
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from foveal.curate.flow import flow_of, warnings_of, whole_command
from foveal.curate.pipeline import Curation, Watch, key_of, plug_ins_of
from foveal.curate.ready import RECIPE, open_sources
from foveal.curate.recipe import PLACES, Recipe, changed, dump_recipe
from foveal.curate.report import write_report
from foveal.curate.runner import Runner
from foveal.errors import FovealError
from foveal.features.ray_tasks import ray_cluster
from foveal.files import staging_of, write_atomically
from foveal.images.imageset import ImageSet

logger = logging.getLogger(__name__)

SUMMARY, REPORT = "summary.json", "report.html"
_HERE = Runner()


@dataclass(frozen=True)
class Curated:
    """A finished curation.

    Attributes:
        out: folder of the result, an image set.
        summary: num_pool, num_images, num_as_is; flow, one entry a stage; descriptors; warnings; command, to repeat it.
    """

    out: Path
    summary: dict[str, Any]


def curate(recipe: Recipe, *, runner: Runner = _HERE, watch: Watch | None = None) -> Curated:
    """Curate a pool as a recipe says, or go on with it; a finished result is returned at once.

    The result of another recipe in the same folder stays until the new one is complete; stages that the changed
    settings do not touch are used again.

    Args:
        recipe: what to do.
        runner: where the shards of stages run.
        watch: called with the name of a stage, gives a context with its progress.

    Raises:
        FovealError: sources that do not fit, or an error of a stage; finished stages stay.
    """
    sources = open_sources(recipe)
    out = Path(recipe.out).absolute()
    settings = {key: value for key, value in recipe.plain().items() if key not in PLACES}
    before = _summary_of(out)
    _tell_changes(out, recipe)
    curation = Curation(recipe, sources, runner=runner, watch=watch)
    identities = [curation.describer.identity, curation.copy_describer.identity]
    stamp = key_of("curate", [settings, sources.hashes, identities, plug_ins_of(recipe)])
    if before.get("stamp") == stamp:
        return Curated(out, before)
    try:
        if not before:
            _write(out / RECIPE, dump_recipe(recipe))
        with ray_cluster(runner.ray_address) if runner.engine == "ray" else nullcontext():  # one for all stages
            images = curation.run()
        (out / SUMMARY).unlink(missing_ok=True)
        _write(out / RECIPE, dump_recipe(recipe))
        images.save_in(out)
        summary = {
            "stamp": stamp,
            "num_pool": len(sources.pool),
            "num_images": len(images),
            "num_as_is": sources.num_seeds if recipe.seeds_as_is else 0,
            "hash": images.hash,
            "seeds": {name: len(one) for name, (_, one) in sources.seeds.items()},
            "num_keep_out": 0 if sources.keep_out is None else len(sources.keep_out[1]),
            "descriptors": curation.descriptors,
            "command": whole_command(curation),
            "flow": flow_of(curation),
            "warnings": warnings_of(curation),
        }
        write_report(out / REPORT, summary, curation)
        _write(out / SUMMARY, json.dumps(summary, indent=2) + "\n")
    except OSError as error:
        raise FovealError(
            f"{out} cannot be written ({error}); free space and run the same command again: what is finished stays"
        ) from error
    return Curated(out, summary)


def _summary_of(out: Path) -> dict[str, Any]:
    """Return the summary of a finished result whose image set is whole; else nothing."""
    path = out / SUMMARY
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found if found["hash"] == ImageSet.open(out).hash else {}
    except (OSError, ValueError, KeyError, FovealError) as error:
        logger.warning("%s is damaged and made again: %s", out, error)
        return {}


def _tell_changes(out: Path, recipe: Recipe) -> None:
    path = out / RECIPE
    if not path.is_file():
        return
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return  # written anew
    now = yaml.safe_load(dump_recipe(recipe))
    if isinstance(held, dict) and (differences := changed({**held, "out": now["out"]}, now)):
        logger.info("%s: %s; stages that this does not touch are used again", out, "; ".join(differences))


def _write(path: Path, text: str) -> None:
    write_atomically(path, text, staging=staging_of(path))
