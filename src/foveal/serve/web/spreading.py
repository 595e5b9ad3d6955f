"""Masks that people have kept find the same thing in similar images, or are followed through the frames of a folder.

Shapes: N images with features, E examples, D width; H W pixels of the original picture.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from foveal.annotate.patch_head import Example
from foveal.annotate.propagate_masks import MaskPropagator
from foveal.annotate.records import Record
from foveal.annotate.track import follow
from foveal.annotate.types import Annotation, Mask
from foveal.errors import FovealError, ProjectError
from foveal.features.seen import SeenImage
from foveal.serve.problems import problem_of
from foveal.serve.service import unawaited
from foveal.serve.web.annotator import Annotator

_MOST_EXAMPLES = 24
_MOST_FRAMES = 300
_UNREADABLE = (413, 422)


class Spread(NamedTuple):
    """What was found, and how far that can be trusted, in words."""

    annotations: list[Annotation]
    words: str


class Spreader:
    """Carries the masks of a project on; one piece of work at a time.

    Attributes:
        done: images that were looked at, and how many these will be; None where nothing is done.
    """

    def __init__(self, annotator: Annotator) -> None:
        self._annotator = annotator
        self._one = asyncio.Lock()
        self.done: tuple[int, int] | None = None

    async def to_similar(self, class_name: str, count: int) -> Spread:
        """Look for a class in the images most like those with a mask of it.

        Args:
            class_name: of accepted masks.
            count: images to look at.

        Raises:
            ProjectError: no accepted mask, no image left, or a masked image that has changed.
        """
        annotator = self._annotator
        async with self._one:
            try:
                masks = await annotator.service.aside(lambda: self._masks(class_name))
                indices = list(masks)[-_MOST_EXAMPLES:]
                rest = await annotator.service.searched(lambda: self._similar(class_name, list(masks), count))
                self.done = (0, len(rest))
                examples = [await self._example(index, masks[index]) for index in indices]
                propagator = await annotator.service.searched(lambda: MaskPropagator(examples))
                return await self._answers(propagator, class_name, rest)
            finally:
                self.done = None

    async def along_video(self, index: int, class_name: str) -> Spread:
        """Follow a class through the frames after its first mask: the images in the folder of one, in their order.

        Args:
            index: of one of the frames.
            class_name: of accepted masks.

        Raises:
            ProjectError: no accepted mask in this folder, a masked frame that has changed, or an unreadable frame.
        """
        annotator = self._annotator
        async with self._one:
            try:
                masks = await annotator.service.aside(lambda: self._masks(class_name))
                frames = await annotator.service.searched(lambda: self._frames(index))
                places = [place for place, frame in enumerate(frames) if frame in masks]
                if not places:
                    raise ProjectError(f"no frame of this folder has a mask of '{class_name}'; keep one first")
                frames = frames[: places[0] + _MOST_FRAMES]
                given = {
                    place: (await self._example(frames[place], masks[frames[place]])).mask
                    for place in places
                    if place < len(frames)
                }
                self.done = (0, len(frames) - min(given) - 1)
                loop = asyncio.get_running_loop()
                # Minutes for a long video: neither searches wait for it, nor the end of the server.
                return await unawaited(lambda: self._followed(loop, frames, given, class_name))
            finally:
                self.done = None

    async def _answers(self, propagator: MaskPropagator, class_name: str, rest: Sequence[int]) -> Spread:
        annotator, found, unreadable = self._annotator, [], 0
        for number, index in enumerate(rest, 1):
            try:
                seen = await annotator.seen(index)
            except FovealError as error:
                if problem_of(error).status not in _UNREADABLE:
                    raise
                unreadable += 1
                continue
            answer = await annotator.service.searched(lambda seen=seen: propagator.answer(seen))  # type: ignore[misc]
            if answer is not None:
                state, score = propagator.trusted(answer)
                mask, uri = Mask.of(answer.mask), annotator.images.uri(index)
                found.append(Annotation(uri, class_name, mask=mask, state=state, source="propagated", score=score))
            self.done = (number, len(rest))
        words = f"'{class_name}' is found in {len(found)} of {len(rest)} similar images"
        words += f"; {unreadable} could not be read" if unreadable else ""
        return Spread(found, f"{words}. {propagator.calibration.summary}.")

    def _followed(
        self, loop: asyncio.AbstractEventLoop, frames: list[int], given: dict[int, np.ndarray], class_name: str
    ) -> Spread:
        def frame(place: int) -> SeenImage:
            seen = asyncio.run_coroutine_threadsafe(self._annotator.seen(frames[place]), loop).result()
            self.done = (max(place - start, 0), len(frames) - start - 1)
            return seen

        found, start = [], min(given)
        for place, objects in follow(frame, len(frames), {one: mask.astype(np.uint8) for one, mask in given.items()}):
            if place not in given and objects.any():
                uri = self._annotator.images.uri(frames[place])
                mask = Mask.of(objects > 0)
                found.append(
                    Annotation(uri, class_name, mask=mask, state="unsure", source="propagated", track=class_name)
                )
        words = f"'{class_name}' is followed through {len(frames) - start - len(given)} frames and seen in {len(found)}"
        return Spread(found, f"{words}. No frame was held out, so each is unsure until somebody has looked.")

    def _masks(self, class_name: str) -> dict[int, list[Mask]]:
        """Return what is accepted of a class on each image, the image that was worked on last at the end."""
        masks: dict[int, list[Mask]] = {}  # encoded: the pixels of thousands have no room in memory
        accepted = self._annotator.project.annotations(class_name=class_name, states=["accepted"])
        for record in sorted(accepted, key=lambda one: one.revision):
            if (mask := record.annotation.mask) is not None:
                masks[record.index] = [*masks.pop(record.index, []), mask]
        if not masks:
            raise ProjectError(f"no mask of '{class_name}' is accepted yet; keep one first")
        return masks

    def _similar(self, class_name: str, masked: Sequence[int], count: int) -> list[int]:
        """Return the images most like any masked one, but for those about which somebody has decided."""
        learner, project = self._annotator.learner, self._annotator.project
        decided = [
            one.index for one in project.annotations(class_name=class_name, states=["rejected"]) if _is_mark(one)
        ]
        shut = np.isin(learner.index, [*masked, *decided, *project.closed_rows().tolist()])
        features = learner.few_shot.features
        examples = features[torch.from_numpy(np.isin(learner.index, masked))]
        if shut.all():
            raise ProjectError(f"no image is left to look for '{class_name}' in")
        if not len(examples):
            raise ProjectError("the masked images have no features: they could not be read when these were made")
        likeness = (features @ examples.T).amax(dim=1).numpy()
        likeness[shut] = -np.inf
        order = np.argsort(-likeness, kind="stable")[: min(count, int((~shut).sum()))]
        indices: list[int] = learner.index[order].tolist()
        return indices

    def _frames(self, index: int) -> list[int]:
        folders = [uri.rpartition("/")[0] for uri in self._annotator.images.rows.column("uri").to_pylist()]
        return [number for number, folder in enumerate(folders) if folder == folders[index]]

    async def _example(self, index: int, masks: Sequence[Mask]) -> Example:
        """Return an image whose masks are known; it must still be the picture that was masked."""
        seen = await self._annotator.seen(index)
        for mask in masks:
            if (mask.height, mask.width) != seen.geometry.original:
                height, width = seen.geometry.original
                raise ProjectError(
                    f"{seen.name} has {width} x {height} pixels, and its mask {mask.width} x {mask.height}: it was "
                    "changed since; put the picture back, or remove the mask"
                )
        pixels = await self._annotator.service.aside(lambda: np.logical_or.reduce([mask.pixels() for mask in masks]))
        return Example(seen, pixels)


def _is_mark(record: Record) -> bool:
    return record.annotation.mask is not None or record.annotation.box is not None
