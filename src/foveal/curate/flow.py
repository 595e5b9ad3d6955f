"""What a curation did, in numbers, words and commands: the same for its summary and its page."""

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foveal.curate.ready import RECIPE
from foveal.curate.recipe import absolute, options_of
from foveal.curate.vectors import Vectors

if TYPE_CHECKING:
    from foveal.curate.pipeline import Curation

_SSCD = "sscd:"


def flow_of(curation: "Curation") -> list[dict[str, Any]]:
    """Return one entry a stage, in order: stage, folder, num_kept, num_removed, by_reason, its facts, its commands."""
    entries = []
    for name, stage in curation.found.stages.items():
        summary = stage.summary or {}
        entries.append(
            {
                "stage": name,
                "folder": str(stage.folder.relative_to(curation.out)),
                **summary,
                "commands": curation.found.commands[name],
            }
        )
    return entries


def warnings_of(curation: "Curation") -> list[str]:
    """Return what a user should know of the result before training on it."""
    recipe, sources = curation.recipe, curation.sources
    found = []
    if sources.keep_out is None:
        found.append(
            "nothing was kept out: images of evaluation sets may be in this set; name them with --keep-out and "
            "run the command again"
        )
    if recipe.seeds_as_is:
        found.append(
            f"the {sources.num_seeds:,} images of the seeds are in this set as they are: they were neither audited nor "
            "compared with each other, with those of the pool or with those kept out"
        )
    model, _ = recipe.copies
    if recipe.dedup is not None and not model.startswith(_SSCD):
        found.append(
            f"copies were found by {curation.copy_describer.model.card.name}, which was not trained for that: the "
            "published limits are those of SSCD; look at what was removed, and set dedup.similarity and "
            "dedup.keep_out_similarity by it"
        )
    retrieved = curation.found.stages.get("retrieve")
    for name, counts in ((retrieved.summary or {}).get("query_sets", {}) if retrieved else {}).items():
        if counts["missing"] and counts["method"] == "sample":  # by clusters, as many as there are is the rule
            found.append(
                f"seeds {name} had room for {counts['missing']:,} more: the images nearest to them went to other "
                "queries; a higher retrieve.candidates looks further, as far as there are others"
            )
    for name, vectors in curation.found.stores.items():
        if (bad := _num_bad(vectors)) > 0:
            found.append(f"{bad:,} images of {name} could not be read for their features, and are left out")
    return found


def whole_command(curation: "Curation") -> str:
    """Return the command that repeats all of it, from the recipe beside the result."""
    pool, out = absolute(curation.recipe.pool), str(curation.out)
    return shlex.join(["foveal", "curate", pool, "--recipe", str(curation.out / RECIPE), "--out", out])


def extract_command(source: str, model: str, vectors: Vectors, how: Any, default: Any) -> str:
    """Return the command that makes a feature store."""
    settings = {key: value for key, value in how.model_dump().items() if value != getattr(default, key)}
    words = ["foveal", "extract", absolute(source), "--model", absolute(model), "--out", str(vectors.path)]
    names = {"token": "tokens"}
    for key, value in settings.items():
        words += [f"--{names.get(key, key).replace('_', '-')}", _size(value)]
    return shlex.join(words)


def stage_command(verb: str, sources: Sequence[Any], out: Any, settings: Any, given: Mapping[str, Any]) -> str:
    """Return the command of a stage's own verb.

    Args:
        verb: of it.
        sources: its arguments.
        out: its folder.
        settings: its settings; those of their default are left out.
        given: further options by name; None and False are left out.
    """
    words = ["foveal", verb, *map(str, sources), "--out", str(out)]
    for name, value in given.items():
        for one in value if isinstance(value, list) else [value]:
            if one is not None and one is not False:
                words += [f"--{name}"] if one is True else [f"--{name}", str(one)]
    return shlex.join(words + options_of(settings))


def _size(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _num_bad(vectors: Vectors) -> int:
    store = vectors.store
    return 0 if store is None else int(store.card.num_images) - len(store)
