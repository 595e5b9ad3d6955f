"""The recipe of a curation: what goes in, the settings of every stage, and the descriptors that they compare by."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from foveal.curate.audit import AuditSettings
from foveal.curate.cluster import ClusterSettings
from foveal.curate.dedup import DedupSettings
from foveal.curate.retrieve import RetrieveSettings
from foveal.curate.sample import SampleSettings
from foveal.errors import RecipeError
from foveal.features.stamp import StoreSettings
from foveal.settings import Settings, built_in_recipes, keys_of, override, problem, read_recipe

_OF_ALL = "dedup"  # a key that every recipe of curation has, and no other recipe
# Keys that say where something is. What is there decides the result, and not its name.
PLACES = ("pool", "out", "seeds", "keep_out", "model", "copy_model", "block_list", "scorer", "transform")
_SEVERAL = ("seeds", "keep_out")


class Embed(Settings):
    """How a model looks at images; see `foveal extract`.

    token: which vector of an image: cls, or mean, that of its patches.
    max_bad_share: stop above this share of images that cannot be read.
    """

    size: int | tuple[int, int] | None = None
    fit: Literal["crop", "resize", "pad"] = "crop"
    token: Literal["cls", "mean"] = "cls"
    dtype: Literal["float16", "int8", "float32"] = "float16"
    engine: Literal["auto", "torch", "openvino"] = "auto"
    batch_size: int = Field(default=32, gt=0)
    shard_size: int = Field(default=1024, gt=0)
    max_bad_share: float = Field(default=0.01, ge=0, le=1)

    def store_settings(self) -> StoreSettings:
        """Return what decides the numbers of the store."""
        return StoreSettings(
            tokens=(self.token,),
            dtype=self.dtype,
            size=self.size,
            fit=self.fit,
            batch_size=self.batch_size,
            shard_size=self.shard_size,
        )


class Recipe(Settings):
    """One curation, whole. The order here is the order in the YAML files; a stage that is null is left out.

    pool: the images to choose from. seeds: sets that the result should resemble. keep_out: sets that it must not hold.
    seeds_as_is: whether the images of the seeds are part of the result, as those of ImageNet-22k are of LVD-142M.
    block_list, scorer, transform: of the audit; see `foveal audit`.
    model: describes images for clusters and retrieval, and for copies where there is no copy_model. copy_embed null is
    as embed. sample needs a target; without one, everything that was retrieved is kept.
    """

    pool: str
    out: str
    seeds: tuple[str, ...] = ()
    keep_out: tuple[str, ...] = ()
    seeds_as_is: bool = False
    model: str
    embed: Embed = Embed()
    copy_model: str | None = None
    copy_embed: Embed | None = None
    audit: AuditSettings | None = AuditSettings()
    block_list: str | None = None
    scorer: str | None = None
    transform: str | None = None
    dedup: DedupSettings | None = DedupSettings()
    cluster: ClusterSettings | None = None
    retrieve: RetrieveSettings | None = RetrieveSettings()
    sample: SampleSettings | None = None

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        if self.audit is None and (self.block_list or self.scorer or self.transform):
            raise ValueError("block_list, scorer and transform have no effect with audit=null; leave one of them out")
        if self.keep_out and self.dedup is None:
            raise ValueError(
                "keep_out has no effect with dedup=null, which looks for its copies; leave one of them out"
            )
        if self.dedup is not None and self.dedup.keep == "best":
            raise ValueError(
                "dedup.keep=best needs a quality of every image, which only foveal dedup --quality takes; set largest "
                "or first"
            )
        if self.cluster is not None and self.retrieve is not None and self.retrieve.level > len(self.cluster.levels):
            raise ValueError(
                f"retrieve.level={self.retrieve.level} is above the {len(self.cluster.levels)} of cluster.levels; "
                "choose 1, the finest, or up to that"
            )
        if self.seeds and self.retrieve is None:
            raise ValueError("seeds have no effect with retrieve=null; leave one of them out")
        if self.seeds_as_is and not self.seeds:
            raise ValueError("seeds_as_is=true needs seeds; add --seed IMAGES")
        if self.sample is not None and self.cluster is None:
            raise ValueError("a target needs clusters, to draw evenly from, and cluster is null; leave one of them out")
        if self.sample is None and not self.seeds and self.audit is None and self.dedup is None:
            raise ValueError("every stage is left out; give --target or --seed, or do not set audit and dedup to null")
        return self

    @property
    def copies(self) -> tuple[str, Embed]:
        """What describes images for copies: the model and how it looks at them."""
        return self.copy_model or self.model, self.copy_embed or self.embed

    @property
    def one_descriptor(self) -> bool:
        """Whether copies are found by the vectors that serve clusters and retrieval."""
        return self.copies == (self.model, self.embed)

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        found: dict[str, Any] = json.loads(self.model_dump_json())
        return found


def recipe_names() -> list[str]:
    """Return the names of the recipes of curation that come with the package."""
    return built_in_recipes(_OF_ALL)


def load_recipe(
    name: str,
    overrides: Sequence[str] = (),
    *,
    pool: str,
    out: str,
    seeds: Sequence[str] = (),
    keep_out: Sequence[str] = (),
    target: int | None = None,
) -> Recipe:
    """Read a recipe by name or from a YAML file, and put what a command says over it.

    Args:
        name: one of `recipe_names()`, or the path of a YAML file.
        overrides: like "dedup.similarity=0.7"; values are YAML.
        pool: the images to choose from.
        out: folder of the result.
        seeds: sets that it should resemble.
        keep_out: sets that it must not hold.
        target: images to end with; None leaves the recipe's.

    Raises:
        RecipeError: unknown recipe or key (the nearest is named), a wrong value, or settings that do not fit together.
        FovealError: a setting of a stage that is out of range.
    """
    values = read_recipe(name, key=_OF_ALL)
    known = keys_of(Recipe)
    override(values, overrides, known=known, texts=set(PLACES).difference(_SEVERAL), example="dedup.similarity=0.7")
    values |= {"pool": pool, "out": str(Path(out).absolute())}
    values |= {key: list(given) for key, given in (("seeds", seeds), ("keep_out", keep_out)) if given}
    for key in PLACES:  # absolute, so that the recipe beside the result means the same from everywhere
        if isinstance(place := values.get(key), str) and key not in _SEVERAL:
            values[key] = absolute(place)
        elif place and key in _SEVERAL:
            values[key] = [absolute(one) for one in ([place] if isinstance(place, str) else map(str, place))]
    sample = values.get("sample") or {}
    if target is not None:
        sample = {**sample, "target": target}
    values["sample"] = sample if "target" in sample else None
    if not values.get("model"):
        raise RecipeError(f"recipe '{name}' needs a model; add model=..., a model folder or a name in foveal models")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        found = "; ".join(problem(detail, known) for detail in error.errors())
        raise RecipeError(f"recipe '{name}': {found}") from error


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.plain(), sort_keys=False)


def changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return, in words, what differs between two recipes as plain values."""
    left, right = _flat(before), _flat(now)
    return [
        f"{key} is {left.get(key)} there and {right.get(key)} now"
        for key in dict.fromkeys([*left, *right])
        if left.get(key) != right.get(key)
    ]


def options_of(settings: Any) -> list[str]:
    """Return settings of a stage as options of its verb, those that are as by default left out.

    Example:
        >>> options_of(RetrieveSettings(per_query=8))
        ['--per-query', '8']
    """
    return [
        word
        for field in fields(settings)
        if (value := getattr(settings, field.name)) not in (field.default, None)
        for word in _option(field.name, value)
    ]


def absolute(source: str) -> str:
    """Return a source that is a path here as an absolute one; also that in "sscd:FILE" and "FILE.py:FUNCTION"."""
    if Path(source).exists():
        return str(Path(source).absolute())
    head, colon, tail = source.partition(":")
    if colon and head and tail:
        return ":".join(str(Path(part).absolute()) if Path(part).exists() else part for part in (head, tail))
    return source


def _option(name: str, value: Any) -> tuple[str, str]:
    if name == "memory_bytes":
        return "--memory", str(value / 2**30)
    return f"--{name.replace('_', '-')}", ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
