"""What the page of annotation works with: the project, the features of its images, and pictures of them.

Shapes: H W pixels of the original picture.
"""

import asyncio
import math
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image

from foveal.annotate.project import Project
from foveal.annotate.prompts import PromptSession
from foveal.annotate.types import Annotation, Prompt
from foveal.features.geometry import Geometry
from foveal.features.pictures import displayed
from foveal.features.seen import SeenImage, denormalise
from foveal.features.store import FeatureStore
from foveal.serve.loaded import check_searchable
from foveal.serve.problems import Problem
from foveal.serve.service import Service
from foveal.serve.web.encode import encoded
from foveal.serve.web.learning import ClassLearner

_MOST_SESSIONS = 4  # pictures that prompts are answered for at once, tens of megabytes each
_MOST_SEEN = 32  # pictures whose patches stay at hand, megabytes each
_SHARE = 0.9  # of the patches that a picture may have; sides are rounded to whole ones
_FINER = 2  # times the side that the model was made for, for masks

_Value = TypeVar("_Value")


class Version(NamedTuple):
    """An image as its file is now: another one once the file has changed."""

    row: int
    mtime_ns: int


class Kept(Generic[_Value]):
    """The last few things that were made of images; several who ask for one wait for the same work."""

    def __init__(self, make: Callable[[Version], Awaitable[_Value]], most: int) -> None:
        self._make, self._most = make, most
        self._tasks: OrderedDict[Version, asyncio.Task[_Value]] = OrderedDict()

    async def get(self, key: Version) -> _Value:
        """Return what belongs to an image; what failed is tried again."""
        found = self._tasks.get(key)
        if found is None or (found.done() and (found.cancelled() or found.exception() is not None)):
            found = self._tasks[key] = asyncio.create_task(self._made(key))
            found.add_done_callback(lambda task: task.cancelled() or task.exception())  # also where nobody waits
            while len(self._tasks) > self._most:
                self._tasks.popitem(last=False)
        self._tasks.move_to_end(key)
        return await asyncio.shield(found)

    async def _made(self, key: Version) -> _Value:
        return await self._make(key)


class Annotator:
    """A project with the model and the features that help.

    Args:
        project: is written to.
        service: its model encodes pictures for masks.
        store: of features of the project's images, from which classes are learnt.
    """

    def __init__(self, project: Project, service: Service, store: FeatureStore) -> None:
        self.project, self.service = project, service
        self.images = project.image_set
        self.learner = ClassLearner(
            store.read(check_searchable(store)), store.rows.column("row").to_numpy(), project.held_out_rows()
        )
        self._seen = Kept(self._see, _MOST_SEEN)
        self._sessions = Kept(self._open, _MOST_SESSIONS)

    async def picture(self, index: int, side: int) -> bytes:
        """Return an image as a JPEG whose longer side has at most so many pixels."""
        return await self.service.aside(lambda: encoded(Image.fromarray(displayed(self._pixels(index, side))), side))

    async def seen(self, index: int) -> SeenImage:
        """Return an image with its patches, as fine as masks need them."""
        return await self._seen.get(self._version(index))

    async def mask_of(self, index: int, prompts: list[Prompt]) -> np.ndarray:
        """Return what prompts make of an image, (H, W) bool."""
        session = await self._sessions.get(self._version(index))
        return await self.service.aside(lambda: session.mask(prompts) > 0.5)

    async def _open(self, version: Version) -> PromptSession:
        seen = await self._seen.get(version)
        return await self.service.aside(lambda: PromptSession(seen))

    async def _see(self, version: Version) -> SeenImage:
        index, model = version.row, self.service.loaded.model
        pixels = await self.service.aside(lambda: self._pixels(index))
        size = self._size(*pixels.shape[:2])
        preprocess = model.preprocessing(size=size, fit="resize")
        [tokens] = await self.service.features([pixels], patches=True, size=size, fit="resize", field="image")

        def seen() -> SeenImage:
            shown = denormalise(preprocess(pixels), mean=preprocess.mean, std=preprocess.std)
            geometry = Geometry.of(preprocess, *pixels.shape[:2])
            return SeenImage(shown, torch.from_numpy(tokens.patches.copy()), geometry, self.images.uri(index))

        return await self.service.aside(seen)

    def _pixels(self, index: int, side: int | None = None) -> np.ndarray:
        # The person's own images: the limits of those that strangers send are not theirs.
        channels = self.service.loaded.model.card.backbone.channels
        return self.images.decode(index, channels=channels, min_short_side=side)

    def _size(self, height: int, width: int) -> int:
        """Return the short side at which masks see a picture: finer than others, as far as patches are allowed."""
        card, longer = self.service.loaded.model.card, max(height, width) / min(height, width)
        patch_size = card.backbone.patch_size
        most = int(math.sqrt(_SHARE * self.service.settings.max_patches / longer)) * patch_size
        return max(min(_FINER * card.crop_size, most), patch_size)

    def _version(self, index: int) -> Version:
        try:
            return Version(index, os.stat(self.images.root / self.images.uri(index)).st_mtime_ns)
        except OSError:
            return Version(index, 0)  # in a tar or Parquet file, or gone

    def uri(self, index: int) -> str:
        """Return the uri of an image; Problem where the project does not have it."""
        self.check(index)
        return self.images.uri(index)

    def check(self, index: int) -> None:
        """Refuse the number of an image that the project does not have."""
        if not 0 <= index < self.project.num_images:
            raise Problem(
                404, "image_not_found", f"no such image; the project has {self.project.num_images}, from 0 on"
            )

    def learn(self) -> None:
        """Fit the head to the labels that there are now."""
        self.learner.learn(self.project.labels())

    def label_proposals(self, count: int) -> list[Annotation]:
        """Return labels for the images of which the head is surest; unsure where it would too often be wrong."""
        self.learn()
        return [
            Annotation(
                self.images.uri(index),
                guess.class_name,
                state=guess.state,
                source="propagated",
                score=guess.probability,
            )
            for index, guess in self.learner.proposals(self.project.closed_rows(), count)
        ]


def mask_png(mask: np.ndarray, side: int) -> bytes:
    """Return a mask (H, W) bool as a PNG, white where it is, the longer side at most so many pixels."""
    return encoded(Image.fromarray(mask.astype(np.uint8) * 255), side, "PNG")
