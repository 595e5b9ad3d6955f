"""What a curation reads, opened and checked before anything long begins."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from foveal.curate.block_list import BlockList
from foveal.curate.recipe import Recipe
from foveal.errors import FovealError, ImageSetError
from foveal.images.imageset import CARD_NAME, ImageSet

RECIPE = "curate.yaml"
Source = tuple[str, ImageSet]  # what `ImageSet.open` takes, and the set


@dataclass(frozen=True)
class Sources:
    """The image sets of a curation.

    Attributes:
        pool_source: where the pool is, as `ImageSet.open` takes it.
        pool: the images to choose from.
        seeds: by name, in order.
        keep_out: the sets to keep out, as one; None where there are none.
    """

    pool_source: str
    pool: ImageSet
    seeds: dict[str, Source]
    keep_out: Source | None

    @property
    def num_seeds(self) -> int:
        """How many images all seeds have."""
        return sum(len(images) for _, images in self.seeds.values())

    @property
    def hashes(self) -> dict[str, str]:
        """What every set holds, by name."""
        found = {"pool": self.pool.hash} | {f"seeds {name}": images.hash for name, (_, images) in self.seeds.items()}
        return found if self.keep_out is None else found | {"keep_out": self.keep_out[1].hash}


def open_sources(recipe: Recipe) -> Sources:
    """Open what a recipe names, make the folder of the result, and refuse what cannot end well.

    Raises:
        ImageSetError: a source that is missing or holds no image.
        FovealError: the same images twice, a target above the pool, fewer images than clusters, or another folder.
    """
    out = Path(recipe.out)
    for source in (recipe.pool, *recipe.seeds, *recipe.keep_out):
        check_outside(out, Path(source))
    _check_out(out)
    if recipe.block_list is not None:
        BlockList.open(Path(recipe.block_list))
    pool = _opened(recipe.pool, "the pool")
    seeds: dict[str, Source] = {}
    for source in recipe.seeds:
        seeds[_name(source, seeds)] = (source, _opened(source, "seeds"))
    keep_out = [(source, _opened(source, "keep_out")) for source in recipe.keep_out]
    for kind, source, images in [
        *(("the seeds", *one) for one in seeds.values()),
        *(("the images to keep out", *one) for one in keep_out),
    ]:
        if images.hash == pool.hash:
            raise FovealError(f"the pool {recipe.pool} and {kind} {source} are the same images; give two sets")
    _check_sizes(recipe, len(pool))
    _check_retrieval(recipe, {name: len(images) for name, (_, images) in seeds.items()})
    num_seeds = sum(len(images) for _, images in seeds.values())
    if recipe.seeds_as_is and recipe.sample is not None and recipe.sample.target <= num_seeds:
        raise FovealError(
            f"target {recipe.sample.target:,} is no more than the {num_seeds:,} images of the seeds, which are all "
            "taken as they are; ask for more, or set seeds_as_is=false"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        return Sources(recipe.pool, pool, seeds, _one(keep_out, out))
    except OSError as error:
        raise FovealError(f"{out} cannot be made ({error}); free space or choose another place") from error


def check_outside(out: Path, source: Path) -> None:
    """Refuse a result inside a folder that is searched for images: its own files would be taken for some."""
    if source.is_dir() and not (source / CARD_NAME).is_file() and out.resolve().is_relative_to(source.resolve()):
        raise FovealError(
            f"--out {out} lies inside {source}, which is searched for images; choose another place: "
            f"{source.resolve().parent / out.name}"
        )


def joined(sets: Sequence[ImageSet]) -> ImageSet:
    """Return several sets as one, with the columns that all have; uris start from the folder that all lie below.

    Example:
        >>> joined([ImageSet.open("a"), ImageSet.open("b")]).uri(0)  # doctest: +SKIP
        'a/1.jpg'
    """
    root = Path(os.path.commonpath([images.root for images in sets]))
    names = [name for name in sets[0].rows.column_names if all(name in one.rows.column_names for one in sets)]
    tables = []
    for images in sets:
        below = images.root.relative_to(root).as_posix()
        uris = images.rows.column("uri").to_pylist()
        column = pa.array(uris if below == "." else [f"{below}/{uri}" for uri in uris], pa.string())
        table = images.rows.select(names).replace_schema_metadata(None)
        tables.append(table.set_column(names.index("uri"), "uri", column))
    return ImageSet(pa.concat_tables(tables, promote_options="default"), root=root)


def _opened(source: str, what: str) -> ImageSet:
    images = ImageSet.open(source)
    if not len(images):
        raise ImageSetError(f"{what} {source} holds no image; give a folder, a list, shards or an image set with some")
    return images


def _name(source: str, taken: dict[str, Source]) -> str:
    """Return the name of a query set: that of its folder or file, or all of its path where that is taken."""
    name = Path(source).stem or Path(source).absolute().name
    return source if name in taken else name


def _check_out(out: Path) -> None:
    if not out.exists() or (out / RECIPE).is_file():
        return
    if not out.is_dir() or any(out.iterdir()):
        raise FovealError(f"{out} exists and is not a curated set; choose another place or remove it")


def _check_sizes(recipe: Recipe, num_images: int) -> None:
    if recipe.sample is not None and recipe.sample.target > num_images:
        raise FovealError(
            f"target {recipe.sample.target:,} is above the {num_images:,} images of the pool; ask for fewer"
        )
    if recipe.cluster is not None and (recipe.sample is not None or recipe.seeds):
        check_levels(recipe.cluster.levels, num_images)


def _check_retrieval(recipe: Recipe, sizes: dict[str, int]) -> None:
    """Refuse seeds that are served by clusters where there are none, and a target above all that they ask for."""
    if recipe.retrieve is None or not sizes:
        return
    by_cluster = [name for name, size in sizes.items() if recipe.retrieve.mode_of(size) == "cluster"]
    if by_cluster and recipe.cluster is None:
        raise FovealError(
            f"the seeds {by_cluster[0]} are served by clusters (retrieve.mode={recipe.retrieve.mode}), and cluster is "
            "null; set cluster.levels, or retrieve.mode=sample"
        )
    num_seeds = sum(sizes.values())
    as_is = num_seeds if recipe.seeds_as_is else 0
    most = num_seeds * recipe.retrieve.per_query + as_is
    target = 0 if recipe.sample is None else recipe.sample.target
    if not by_cluster and target > most:
        raise FovealError(
            f"target {target:,} is above the {most:,} images that {num_seeds:,} seeds ask for at most; ask for fewer, "
            f"or set retrieve.per_query={-(-2 * (target - as_is) // num_seeds)}"
        )


def check_levels(levels: Sequence[int], num_images: int) -> None:
    """Refuse more clusters than images; FovealError gives levels that fit."""
    if levels[0] > num_images:
        raise FovealError(
            f"{levels[0]:,} clusters for {num_images:,} images (cluster.levels={list(levels)}); set "
            f"cluster.levels={fitting_levels(levels, num_images)}"
        )


def fitting_levels(levels: Sequence[int], num_images: int) -> str:
    """Return levels in the same proportions with 10 images to each of the finest clusters, as key=value takes them.

    Example:
        >>> fitting_levels([1000, 100], 500)
        '[50,5]'
    """
    factor = num_images / 10 / max(levels)
    fewer = dict.fromkeys(max(1, round(level * factor)) for level in levels)
    return "[" + ",".join(map(str, fewer)) + "]"


def _one(sets: Sequence[Source], out: Path) -> Source | None:
    """Return several sets as one that workers can open: saved beside the stages where there is more than one."""
    if len(sets) < 2:
        return sets[0] if sets else None
    images = joined([images for _, images in sets])
    folder = out / "stages" / f"keep-out-{images.hash[:8]}"
    if not (folder / CARD_NAME).is_file():
        images.save(folder)
    return str(folder), images
