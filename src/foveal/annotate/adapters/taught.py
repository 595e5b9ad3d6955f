"""What the accepted labels and masks of a project teach about any picture, as tools ask for it.

Shapes: B pictures asked about, D width, H W pixels of the original picture.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from foveal.annotate.calibration import check_precision
from foveal.annotate.few_shot import FewShot
from foveal.annotate.patch_head import Example
from foveal.annotate.project import Project
from foveal.annotate.propagate_masks import MaskPropagator, Trust
from foveal.annotate.records import Record
from foveal.annotate.types import Annotation, Mask
from foveal.errors import BadImageError, FovealError
from foveal.features.extract import Model
from foveal.features.lookup import encode_queries, vector_name
from foveal.features.seen import SeenImage, see
from foveal.features.store import FeatureStore
from foveal.images.preprocess import ImageLike

logger = logging.getLogger(__name__)

MOST_EXAMPLES = 100  # masked pictures of a class that are learnt from, the newest; some 2 MB each
_FINER = 2  # times the side that the model was made for, for masks


class Answers(NamedTuple):
    """What is said of a picture.

    Attributes:
        annotations: those worth giving: each is "proposed" and has its probability of being right.
        score: the least probability of all that was considered, 0 to 1; 0 where nothing is known.
    """

    annotations: tuple[Annotation, ...]
    score: float


class Taught:
    """Answers for pictures by what people have accepted in a project; each question uses what is accepted by then.

    Labels are answered by a head on the features of whole images, masks by one on patches for each class. An answer
    that held-out ones do not show to be worth giving is left out: see `foveal.annotate.calibration`.

    Args:
        project: is read.
        model: whose features the store has.
        store: of the project's images.
        precision: wanted of answers, above 0 and below 1.
    """

    def __init__(self, project: Project, model: Model, store: FeatureStore, *, precision: float = 0.9) -> None:
        check_precision(precision)
        self.project, self._model, self._store, self._precision = project, model, store, precision
        self._name = vector_name(store, None)
        self._vectors = store.read(self._name).astype(np.float32)
        self._places = {row: place for place, row in enumerate(store.rows.column("row").to_pylist())}
        self._told: dict[str, str] = {}
        self._seen: OrderedDict[int, SeenImage] = OrderedDict()
        self._learnt: dict[str, tuple[object, MaskPropagator | None]] = {}

    @property
    def version(self) -> str:
        """The name of what is known now; it changes with the project."""
        return f"foveal-{self.project.revision}"

    def of_images(self, uris: Sequence[str], *, labels: bool = True, masks: bool = True) -> list[Answers]:
        """Return answers for images of the project; see `of_picture`. One without features has none."""
        rows = [self.project.index(uri) for uri in uris]
        known = [(uri, self._places[row]) for uri, row in zip(uris, rows, strict=True) if row in self._places]
        names, places = [uri for uri, _ in known], [place for _, place in known]
        said = dict(zip(names, self._labels(names, self._vectors[places]), strict=True)) if labels and known else {}
        found = []
        for uri, row in zip(uris, rows, strict=True):
            label = said.get(uri)
            considered = [] if label is None else [label]
            if masks and row in self._places:
                try:
                    considered += self._masks(uri, lambda row=row: self._look(row))  # type: ignore[misc]
                except BadImageError as error:  # no mask is answered
                    self._tell(f"{uri}: {error}")
            found.append(_answers(considered))
        return found

    def of_picture(self, picture: ImageLike, *, name: str = "", labels: bool = True, masks: bool = True) -> Answers:
        """Return answers for any picture.

        Args:
            picture: a path, a Pillow image or an array.
            name: stands as image in the annotations.
            labels: answer with the label of the whole.
            masks: answer with masks, at most one a class.
        """
        considered: list[Annotation] = []
        if labels:
            vectors = encode_queries(self._store, self._name, [picture], self._model).float().numpy()
            considered += [one for one in self._labels([name], vectors) if one]
        if masks:
            considered += self._masks(name, lambda: see(self._model, picture, size=self._size))
        return _answers(considered)

    def look(self, uri: str) -> SeenImage:
        """Return an image of the project as the model sees it, for masks."""
        return self._look(self.project.index(uri))

    def _labels(self, names: Sequence[str], vectors: np.ndarray) -> list[Annotation | None]:
        """Return the label of each picture with features (B, D), or None while fewer than two classes have labels."""
        labels = self.project.labels()
        known = [at for at, row in enumerate(labels.index.tolist()) if row in self._places]
        if len({labels.names[at] for at in known}) < 2:
            return [None] * len(names)
        rows = [self._places[int(labels.index[at])] for at in known]
        fit = FewShot(np.concatenate([self._vectors[rows], vectors])).fit(
            {row: labels.names[at] for row, at in enumerate(known)},
            drawn=[row for row, at in enumerate(known) if labels.held_out[at]],
            precision=self._precision,
        )
        self._tell(f"labels: {fit.calibration.summary}")
        answers = [fit.classes[number] for number in fit.answers[len(known) :].tolist()]
        found = zip(names, answers, fit.states[len(known) :], fit.probabilities[len(known) :].tolist(), strict=True)
        return [Annotation(name, said, state=state, source="propagated", score=p) for name, said, state, p in found]

    def _masks(self, name: str, look: Callable[[], SeenImage]) -> list[Annotation]:
        """Return a mask for each class that is found; the picture is looked at where there is something to look for."""
        propagators = self._propagators()
        seen = look() if propagators else None
        found = []
        for class_name, propagator in propagators.items():
            assert seen is not None
            if (answer := propagator.answer(seen)) is not None:
                state, p = propagator.trusted(answer)
                mask = Mask.of(answer.mask)
                found.append(Annotation(name, class_name, mask, None, state, "propagated", 0.0 if p is None else p))
        return found

    def _propagators(self) -> dict[str, MaskPropagator]:
        """Return what is learnt of each class with accepted masks, fitted again where these have changed."""
        accepted: dict[str, dict[int, list[Record]]] = {}
        for record in self.project.annotations(states=("accepted",)):
            if record.annotation.mask is not None:
                images = accepted.setdefault(record.annotation.class_name, {})
                images.setdefault(record.index, []).append(record)
        for class_name, images in accepted.items():
            newest = sorted(images, key=lambda row: -max(one.revision for one in images[row]))[:MOST_EXAMPLES]
            state = [(one.annotation.id, one.revision) for row in newest for one in images[row]]
            if class_name not in self._learnt or self._learnt[class_name][0] != state:
                self._learnt[class_name] = state, self._propagator(class_name, {row: images[row] for row in newest})
        return {name: found for name in accepted if (found := self._learnt[name][1]) is not None}

    def _propagator(self, class_name: str, masks: dict[int, list[Record]]) -> MaskPropagator | None:
        """Learn from masked pictures; those that are gone or of another size by now are named, and not learnt from."""
        examples = []
        for row, records in masks.items():
            uri, mask = records[0].annotation.image, _together(records)
            try:
                seen = self._see(row)
            except BadImageError as error:
                self._tell(f"{uri}: {error}; its masks are not learnt from")
                continue
            if seen.geometry.original != mask.shape:
                self._tell(f"{uri}: it is of another size than its masks by now, which are not learnt from")
                continue
            examples.append(Example(seen, mask))
        if not examples:
            return None
        try:
            propagator = MaskPropagator(examples, trust=Trust(precision=self._precision))
        except FovealError as error:  # nothing is inside or outside of the masks, such as of one of a whole picture
            self._tell(f"masks of {class_name}: {error}")
            return None
        self._tell(f"masks of {class_name}: {propagator.calibration.summary}")
        return propagator

    def _tell(self, text: str) -> None:
        """Log what held-out answers say, where it is news: who gets no answers looks for the reason."""
        about, _, said = text.partition(": ")
        if self._told.get(about) != said:
            self._told[about] = said
            logger.info("%s", text)

    @property
    def _size(self) -> int:
        return _FINER * self._model.card.crop_size

    def _see(self, row: int) -> SeenImage:
        """Return an example as the model sees it; as many as a class may have are kept."""
        self._seen[row] = self._look(row)
        self._seen.move_to_end(row)
        while len(self._seen) > MOST_EXAMPLES:
            self._seen.popitem(last=False)
        return self._seen[row]

    def _look(self, row: int) -> SeenImage:
        if row in self._seen:
            return self._seen[row]
        pixels = self.project.image_set.decode(row, channels=self._model.card.backbone.channels)
        return see(self._model, pixels, size=self._size)


def _together(records: Sequence[Record]) -> np.ndarray:
    masks = [one.annotation.mask.pixels() for one in records if one.annotation.mask is not None]
    found: np.ndarray = np.logical_or.reduce(masks)
    return found


def _answers(considered: Sequence[Annotation]) -> Answers:
    given = tuple(one for one in considered if one.state == "proposed")
    return Answers(given, min((one.score or 0.0 for one in considered), default=0.0))
