"""Vectors of an image set by a model, through the feature store, here or on a Ray cluster."""

import os
from pathlib import Path
from typing import Any

import foveal
from foveal.backbone.source import peek_card
from foveal.curate.recipe import Embed
from foveal.curate.runner import Runner
from foveal.curate.vectors import Vectors
from foveal.errors import FovealError
from foveal.features.batches import Progress
from foveal.features.extract import Model
from foveal.features.extraction import open_extraction
from foveal.features.ray_shards import Job, run_on_ray
from foveal.images.imageset import ImageSet


class Describer:
    """A model with the way in which it looks at images; opened once for all sets.

    Attributes:
        model: loaded.
        source: as it was given.
        how: size, token and so on.
    """

    def __init__(self, source: str, how: Embed) -> None:
        """Open the model.

        Raises:
            WeightsError: there is none of that name, or it is damaged.
            FovealError: the model cannot look at images like that.
        """
        self.source, self.how = source, how
        how.store_settings().check(peek_card(source))
        self.model: Model = foveal.load(source, engine=how.engine)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the vectors of an image."""
        how = self.how.model_dump(mode="json", exclude={"max_bad_share"})
        return {"model": self.model.identity, "version": foveal.__version__, **how}

    def words(self, what_for: str) -> dict[str, Any]:
        """Return name, licence and hash of the model, and how it looks at images, for a page."""
        card = self.model.card
        look = self.model.preprocessing(size=self.how.size, fit=self.how.fit)
        return {
            "what_for": what_for,
            "source": self.source,
            "name": card.name,
            "licence": card.licence.name,
            "sha256": self.model.identity,
            "pixels": look.crop_size if look.mode == "crop" else look.resize_size,
            "token": self.how.token,
        }

    def describe(self, images: str | Path, store: Path, *, runner: Runner, progress: Progress | None = None) -> Vectors:
        """Extract the vectors of a source into a store, or go on with it, and open them.

        Args:
            images: a source, as `ImageSet.open` takes it; on Ray every node must see it.
            store: folder of the features.
            runner: where shards run; here, one process does all with the threads of torch.
            progress: called with (images done, images in all).

        Raises:
            FovealError: too many bad images, or the store cannot be written; finished shards stay.
        """
        settings = self.how.store_settings()
        extraction = open_extraction(store, self.model, ImageSet.open(images), settings)
        share = self.how.max_bad_share
        if runner.engine == "ray":
            job = Job(
                os.path.abspath(images) if os.path.exists(images) else str(images),
                os.path.abspath(self.source) if os.path.exists(self.source) else self.source,
                settings,
                load_options=(("engine", self.how.engine),),
            )
            run_on_ray(
                extraction,
                job,
                address=runner.ray_address,
                num_cpus=runner.num_cpus,
                max_bad_share=share,
                progress=progress,
            )
        elif extraction.run(max_bad_share=share, progress=progress) is None:
            raise FovealError(f"{store} is unfinished: another process works on it; wait for that and try again")
        return Vectors(store, token=self.how.token)
