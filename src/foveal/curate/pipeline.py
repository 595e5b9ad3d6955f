"""A curation from end to end: audit, descriptors, duplicates, clusters, retrieval, sampling, one recipe.

    SET/imageset.json, part-*.parquet   the result, an image set with the provenance of every image
    SET/curate.yaml                     the recipe, resolved
    SET/summary.json                    what every stage did; written last
    SET/report.html                     the same to look at
    SET/stages/NAME-HASH/               a stage or a feature store, by what decides its contents

A stage's folder is named by everything that decides what is in it. A changed setting therefore makes new folders for
its stage and those behind it; earlier ones are found again, and so is everything when the setting is changed back.
"""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from foveal.curate.audit import run_audit
from foveal.curate.cluster import run_cluster
from foveal.curate.dedup import run_dedup
from foveal.curate.embedding import Describer
from foveal.curate.flow import extract_command, stage_command
from foveal.curate.outcome import curated_images
from foveal.curate.plugins import load_plugin
from foveal.curate.ready import Sources, check_levels
from foveal.curate.recipe import Embed, Recipe, absolute
from foveal.curate.retrieve import run_retrieve
from foveal.curate.runner import Runner
from foveal.curate.sample import SampleSettings, run_sample
from foveal.curate.stage import VERSION, Stage
from foveal.curate.vectors import Vectors
from foveal.errors import FovealError
from foveal.features.batches import Progress
from foveal.files import sha256_of
from foveal.images.imageset import ImageSet

logger = logging.getLogger(__name__)

STAGES, FEATURES = "stages", "features"
Watch = Callable[[str], AbstractContextManager[Progress | None]]


@dataclass
class Found:
    """What the stages of a curation have made so far; each fills what it makes.

    Attributes:
        images: source of the images that are left: a path or a pattern.
        key: names what they are: a hash of everything that decided them.
        num_images: of them.
        vectors: of the images left once they have been described for clusters.
        rows: file with the rows of `vectors` that are left; None is all.
        stages: the finished ones by name, in order.
        commands: that repeat each of them, by its name.
        stores: vectors by name of the set that they describe.
    """

    images: str
    key: str
    num_images: int
    vectors: Vectors | None = None
    rows: Path | None = None
    stages: dict[str, Stage] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    stores: dict[str, Vectors] = field(default_factory=dict)


class Curation:
    """The stages of one recipe, in order; made with its sources checked, before anything long begins.

    Attributes:
        recipe: of the curation.
        out: folder of the result.
        sources: pool, seeds and sets to keep out, opened.
        found: what the stages have made.
    """

    def __init__(self, recipe: Recipe, sources: Sources, *, runner: Runner, watch: Watch | None = None) -> None:
        """Take what `foveal.curate.ready` has checked; open the models."""
        self.recipe, self.sources, self.runner = recipe, sources, runner
        self.watch: Watch = watch or (lambda label: nullcontext())
        self.out = Path(recipe.out).absolute()
        self.describer = Describer(recipe.model, recipe.embed)
        self.copy_describer = self.describer if recipe.one_descriptor else Describer(*recipe.copies)
        pool = sources.pool
        self.found = Found(sources.pool_source, f"pool {pool.hash}", len(pool))

    def run(self) -> ImageSet:
        """Run the stages that are missing and return the result; the finished ones are only opened.

        Raises:
            FovealError: of a stage; finished ones stay, and the same call goes on from there.
        """
        self._audit()
        self._dedup()
        self._describe()
        self._cluster()
        self._retrieve()
        self._sample()
        return curated_images(self.found, self.recipe, self.sources)

    @property
    def descriptors(self) -> list[dict[str, Any]]:
        """What describes images, and for which stages."""
        if self.describer is self.copy_describer:
            return [self.describer.words("duplicates, clusters and retrieval")]
        return [self.copy_describer.words("duplicates"), self.describer.words("clusters and retrieval")]

    def _audit(self) -> None:
        recipe, found = self.recipe, self.found
        if recipe.audit is None:
            return
        block_list = None if recipe.block_list is None else Path(recipe.block_list)
        given: dict[str, Any] = {"block_list": block_list, "scorer": recipe.scorer, "transform": recipe.transform}
        folder = self._folder("audit", [asdict(recipe.audit), plug_ins_of(recipe)], found.key)
        with self.watch("audit") as progress:
            stage = run_audit(
                ImageSet.open(found.images),
                out=folder,
                settings=recipe.audit,
                runner=self.runner,
                progress=progress,
                **given,
            )
        options = {name.replace("_", "-"): value for name, value in given.items()}
        self._tell("audit", [absolute(found.images)], folder, recipe.audit, **options)
        found.images = str(folder)
        self._take("audit", stage)

    def _dedup(self) -> None:
        recipe, found = self.recipe, self.found
        if recipe.dedup is None:
            return
        vectors = self._vectors("dedup", "pool", found.images, found.key, self.copy_describer)
        keep_out = None
        if self.sources.keep_out is not None:
            source, images = self.sources.keep_out
            keep_out = self._vectors("dedup", "keep-out", source, images.hash, self.copy_describer)
        others = [] if keep_out is None else [keep_out.hash]
        deciding = {key: value for key, value in asdict(recipe.dedup).items() if key != "memory_bytes"}
        folder = self._folder("dedup", deciding, vectors.hash, *others)
        with self.watch("dedup") as progress:
            stage = run_dedup(
                vectors, keep_out=keep_out, out=folder, settings=recipe.dedup, runner=self.runner, progress=progress
            )
        place = None if keep_out is None else keep_out.path
        self._tell("dedup", [vectors.path], folder, recipe.dedup, token=_token(vectors), **{"keep-out": place})
        found.images = str(folder)
        if recipe.one_descriptor:
            found.vectors = Vectors(vectors.path, token=recipe.embed.token, rows=stage.rows)
        self._take("dedup", stage)

    def _describe(self) -> None:
        found, recipe = self.found, self.recipe
        if found.vectors is None and (recipe.sample is not None or recipe.seeds):
            first = "cluster" if self._needs_clusters else "retrieve"
            found.vectors = self._vectors(first, "what is left", found.images, found.key, self.describer)

    def _cluster(self) -> None:
        recipe, vectors = self.recipe, self.found.vectors
        if recipe.cluster is None or vectors is None or not self._needs_clusters:
            return
        if recipe.sample is not None:
            check_target(self._target(recipe.sample), self.found)
        check_levels(recipe.cluster.levels, vectors.num_rows)
        folder = self._folder("cluster", asdict(recipe.cluster), vectors.hash)
        with self.watch("cluster") as progress:
            stage = run_cluster(vectors, out=folder, settings=recipe.cluster, runner=self.runner, progress=progress)
        self._tell("cluster", [vectors.path], folder, recipe.cluster, token=_token(vectors), rows=vectors.rows_path)
        self._take("cluster", stage)

    @property
    def _retrieves_by_clusters(self) -> bool:
        retrieve = self.recipe.retrieve
        return retrieve is not None and any(
            retrieve.mode_of(len(seeds)) == "cluster" for _, seeds in self.sources.seeds.values()
        )

    @property
    def _needs_clusters(self) -> bool:
        return self.recipe.cluster is not None and (self.recipe.sample is not None or self._retrieves_by_clusters)

    def _retrieve(self) -> None:
        recipe, found = self.recipe, self.found
        if recipe.retrieve is None or found.vectors is None or not self.sources.seeds:
            return
        queries = {
            name: self._vectors("retrieve", f"seeds {name}", source, images.hash, self.describer)
            for name, (source, images) in self.sources.seeds.items()
        }
        clusters = found.stages.get("cluster") if self._retrieves_by_clusters else None
        others = [one.hash for one in queries.values()] + ([clusters.stamp] if clusters else [])
        folder = self._folder("retrieve", [asdict(recipe.retrieve), list(queries)], found.vectors.hash, *others)
        with self.watch("retrieve") as progress:
            stage = run_retrieve(
                found.vectors,
                queries,
                clusters=clusters.folder if clusters else None,
                out=folder,
                settings=recipe.retrieve,
                runner=self.runner,
                progress=progress,
            )
        self._tell(
            "retrieve",
            [found.vectors.path],
            folder,
            recipe.retrieve,
            token=_token(found.vectors),
            rows=found.vectors.rows_path,
            queries=[f"{name}={one.path}" for name, one in queries.items()],
            clusters=clusters.folder if clusters else None,
        )
        found.rows = stage.rows
        self._take("retrieve", stage)

    def _sample(self) -> None:
        settings, found = self.recipe.sample, self.found
        if settings is None:
            return
        settings = replace(settings, target=self._target(settings))
        check_target(settings.target, found)
        clusters, among = found.stages["cluster"], found.stages.get("retrieve")
        others = [] if among is None else [among.stamp]
        folder = self._folder("sample", asdict(settings), clusters.stamp, *others)
        place = None if among is None else among.folder
        with self.watch("sample"):
            stage = run_sample(clusters.folder, among=place, out=folder, settings=settings)
        self._tell("sample", [clusters.folder], folder, settings, among=place)
        found.rows = stage.rows
        self._take("sample", stage)

    def _target(self, settings: SampleSettings) -> int:
        """Return how many images of the pool to draw: fewer where those of the seeds are part of the result."""
        return settings.target - (self.sources.num_seeds if self.recipe.seeds_as_is else 0)

    def _vectors(self, stage: str, name: str, source: str, key: str, describer: Describer) -> Vectors:
        """Describe a set; the store is named by the set and by what decides its vectors, so that none is made twice."""
        folder = self._folder(FEATURES, describer.identity, key)
        with self.watch(f"features of {name}") as progress:
            vectors = describer.describe(source, folder, runner=self.runner, progress=progress)
        self.found.stores[name] = vectors
        self.found.commands[stage].append(extract_command(source, describer.source, vectors, describer.how, Embed()))
        return vectors

    def _folder(self, name: str, settings: Any, *inputs: str) -> Path:
        version = [] if name == FEATURES else [str(VERSION)]  # a stage of another version is made again
        return self.out / STAGES / f"{name}-{key_of(name, settings, *inputs, *version)[:8]}"

    def _tell(self, verb: str, sources: Sequence[Any], folder: Path, settings: Any, **given: Any) -> None:
        self.found.commands[verb].append(stage_command(verb, sources, folder, settings, given))

    def _take(self, name: str, stage: Stage) -> None:
        found = self.found
        summary = stage.summary or {}
        found.stages[name] = stage
        found.key, found.num_images = f"{name} {stage.stamp}", summary["num_kept"]
        removed = "".join(f", {count:,} {reason}" for reason, count in summary["by_reason"].items())
        logger.info("%s: %d kept%s", name, found.num_images, removed)
        if found.num_images == 0:
            raise FovealError(f"{name} has kept no image{removed}; loosen its settings: {stage.folder} says what fell")


def _token(vectors: Vectors) -> str | None:
    return None if vectors.token == "cls" else vectors.token


def plug_ins_of(recipe: Recipe) -> list[str | None]:
    """Return the hash of the block list and of each plug-in of a recipe; None for what it has not."""
    block_list = None if recipe.block_list is None else sha256_of(Path(recipe.block_list))
    return [block_list, *(load_plugin(name).sha256 if name else None for name in (recipe.scorer, recipe.transform))]


def key_of(name: str, settings: Any, *inputs: str) -> str:
    """Return the sha256 that names a stage's folder: of its name, its settings and what it reads."""
    return hashlib.sha256(json.dumps([name, settings, inputs], sort_keys=True, default=str).encode()).hexdigest()


def check_target(target: int, found: Found) -> None:
    """Refuse a target above the images that are left; FovealError says after which stage, and what to loosen."""
    if target <= found.num_images:
        return
    kept = {name: (stage.summary or {})["num_kept"] for name, stage in found.stages.items()}
    flow = ", ".join(f"{count:,} after {name}" for name, count in kept.items() if name != "cluster")
    loosen = (
        "retrieve more (retrieve.per_query, retrieve.per_cluster, a lower retrieve.min_queries)"
        if "retrieve" in kept
        else "remove fewer (a higher dedup.similarity)"
    )
    raise FovealError(
        f"target {target:,} is above the {found.num_images:,} images that are left ({flow}); ask for fewer, or {loosen}"
    )
