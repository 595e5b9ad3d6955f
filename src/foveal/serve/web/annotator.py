"""What the page of annotation works with: the project, the features of its images, and pictures of them.

Shapes: H W pixels of the original picture.
"""

import asyncio
import io
from collections import OrderedDict

import numpy as np
import torch
from PIL import Image

from foveal.annotate.calibration import calibrate
from foveal.annotate.project import Project
from foveal.annotate.prompts import PromptSession
from foveal.annotate.queries import Filter
from foveal.annotate.types import Annotation, Prompt
from foveal.features.geometry import Geometry
from foveal.features.pictures import displayed
from foveal.features.seen import SeenImage, denormalise
from foveal.features.store import FeatureStore
from foveal.serve.limits import decode_limits
from foveal.serve.loaded import check_searchable
from foveal.serve.service import Service
from foveal.serve.web.learning import ClassLearner

_MOST_SESSIONS = 4  # pictures whose features stay at hand, tens of megabytes each
_FINER = 2  # times the side that the model was made for, for masks


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
        held_out = [image.index for image in _all(project) if image.held_out]
        self.learner = ClassLearner(
            store.read(check_searchable(store)),
            store.rows.column("row").to_numpy(),
            np.array(held_out, np.int64),
        )
        self._sessions: OrderedDict[int, asyncio.Task[PromptSession]] = OrderedDict()

    async def picture(self, index: int, side: int) -> bytes:
        """Return an image as a JPEG whose longer side has at most so many pixels."""
        return await self.service.aside(lambda: _jpeg(self._pixels(index, side), side))

    async def mask_of(self, index: int, prompts: list[Prompt]) -> np.ndarray:
        """Return what prompts make of an image, (H, W) bool."""
        session = await self._session(index)
        return await self.service.aside(lambda: session.mask(prompts) > 0.5)

    async def _session(self, index: int) -> PromptSession:
        """Return an image with its features; several that ask for one wait for the same work."""
        found = self._sessions.get(index)
        if found is None or (found.done() and (found.cancelled() or found.exception() is not None)):
            found = self._sessions[index] = asyncio.create_task(self._opened(index))
            while len(self._sessions) > _MOST_SESSIONS:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(index)
        return await asyncio.shield(found)

    async def _opened(self, index: int) -> PromptSession:
        model = self.service.loaded.model
        size = _FINER * model.card.crop_size
        preprocess = model.preprocessing(size=size, fit="resize")
        pixels = await self.service.aside(lambda: self._pixels(index))
        [encoded] = await self.service.features([pixels], patches=True, size=size, fit="resize", field="image")

        def opened() -> PromptSession:
            shown = denormalise(preprocess(pixels), mean=preprocess.mean, std=preprocess.std)
            geometry = Geometry.of(preprocess, *pixels.shape[:2])
            return PromptSession(SeenImage(shown, torch.from_numpy(encoded.patches.copy()), geometry))

        return await self.service.aside(opened)

    def _pixels(self, index: int, side: int | None = None) -> np.ndarray:
        channels = self.service.loaded.model.card.backbone.channels
        limits = decode_limits(self.service.settings)
        return self.images.decode(index, channels=channels, limits=limits, min_short_side=side)

    def learn(self) -> None:
        """Fit the head to the labels that there are now."""
        self.learner.learn(self.project.labels())

    def closed(self) -> np.ndarray:
        """Return rows of images that somebody has finished or skipped."""
        found = [image.index for state in ("done", "skipped") for image in _all(self.project, Filter(state=state))]
        return np.array(found, np.int64)

    def label_proposals(self, count: int) -> list[Annotation]:
        """Return labels for the images of which the head is surest; unsure where it would too often be wrong."""
        self.learn()
        calibration = calibrate(*self.learner.measured())
        found = self.learner.guesses(self.closed(), count)
        states = calibration.states(np.array([guess.probability for _, guess in found]))
        return [
            Annotation(
                self.images.uri(index), guess.class_name, state=state, source="propagated", score=guess.probability
            )
            for (index, guess), state in zip(found, states, strict=True)
        ]


def mask_png(mask: np.ndarray, side: int) -> bytes:
    """Return a mask (H, W) bool as a PNG, white where it is, the longer side at most so many pixels."""
    return _encoded(_smaller(Image.fromarray(mask.astype(np.uint8) * 255), side), "PNG")


def _jpeg(pixels: np.ndarray, side: int) -> bytes:
    return _encoded(_smaller(Image.fromarray(displayed(pixels)), side), "JPEG")


def _smaller(picture: Image.Image, side: int) -> Image.Image:
    picture.thumbnail((side, side))
    return picture


def _encoded(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def _all(project: Project, chosen: Filter = Filter()):  # type: ignore[no-untyped-def]  # noqa: B008 (frozen)
    for start in range(0, project.num_images, 10_000):
        yield from project.page(start, 10_000, chosen=chosen)
