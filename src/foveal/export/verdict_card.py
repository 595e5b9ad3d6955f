"""What a verdict says, as it is written beside an export and shown as a table; `verdict` makes it."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from foveal.engine.gate import shown

Task = Literal["classification", "segmentation", "depth"]

HEADER = ("", "export", "original")


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Spread(_Written):
    """The least and the mean of a number over tokens."""

    min: float
    mean: float


class Cost(_Written):
    """What an engine costs.

    Attributes:
        engine: its name and precision.
        latency_ms: median time of one image, milliseconds.
        images_per_s: images a second in batches of `batch_size`.
        batch_size: the largest batch of the images compared.
        size_bytes: of all files; None where that is not known.
    """

    engine: str
    latency_ms: float
    images_per_s: float
    batch_size: int
    size_bytes: int | None


class HeadVerdict(_Written):
    """How well the outputs of a head agree.

    Attributes:
        task: of the head.
        error: ||found - exact|| / ||exact|| of an image's outputs, the mean over images.
        error_max: the largest.
        same_class: share of images, or of pixels, with the same class; None for depth.
        mean_difference: mean absolute difference of depth, in its unit; None for classes.
    """

    task: Task
    error: float
    error_max: float
    same_class: float | None = None
    mean_difference: float | None = None


class WorstLayer(_Written):
    """Where the error of an export comes from.

    Attributes:
        name: "blocks.3" and the like, or "norm", the last one.
        added: what it adds to the error of the layers before. An error is ||found - exact|| / ||exact||, the mean over
            class tokens and that over all others counting half each.
        cosine: mean cosine of class tokens after each layer, by its name, in their order.
    """

    name: str
    added: float
    cosine: dict[str, float]


class Verdict(_Written):
    """What comparing an export with its original has shown.

    Attributes:
        limit: least cosine.
        num_images: real images compared; some of them at a second size too.
        shapes: their sizes (height, width), pixels.
        cls: cosine of class tokens to the original's.
        patches: the same of patch and register tokens.
        length: length of the export's tokens over that of the original's, where it is furthest from 1.
        same_neighbour: share of images whose nearest neighbour among the others is the same; None for one image.
        heads: outputs of heads by name.
        export: cost of the export.
        original: cost of the original, measured in turns with it.
        faults: why it does not pass, in sentences; empty where it does.
        worst_layer: of an export that does not pass, where that can be told.
    """

    limit: float
    num_images: int
    shapes: list[tuple[int, int]]
    cls: Spread
    patches: Spread
    length: float
    same_neighbour: float | None
    heads: dict[str, HeadVerdict] = {}
    export: Cost
    original: Cost
    faults: list[str] = []
    worst_layer: WorstLayer | None = None

    @property
    def passed(self) -> bool:
        """Whether the export agrees well enough."""
        return not self.faults

    @property
    def reason(self) -> str:
        """Why it does not pass, with the worst layer; empty where it passes."""
        worst = f"the error begins in {self.worst_layer.name}" if self.worst_layer else ""
        return "; ".join([*self.faults, *([worst] if worst else [])])

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the verdict as rows of a table with the columns of `HEADER`."""
        rows = [
            ("engine", self.export.engine, self.original.engine),
            ("cosine of class tokens, min", shown(self.cls.min), ""),
            ("cosine of class tokens, mean", shown(self.cls.mean), ""),
            ("cosine of patches, min", shown(self.patches.min), ""),
            ("cosine of patches, mean", shown(self.patches.mean), ""),
        ]
        if self.same_neighbour is not None:
            rows.append(("same nearest neighbour, %", f"{100 * self.same_neighbour:.1f}", ""))
        for name, head in self.heads.items():
            rows.append((f"{name}: error of outputs, mean", f"{head.error:.2e}", ""))
            if head.same_class is not None:
                rows.append((f"{name}: same class, %", f"{100 * head.same_class:.2f}", ""))
            if head.mean_difference is not None:
                rows.append((f"{name}: mean difference of depth", f"{head.mean_difference:.2e}", ""))
        batch = f"images/s, batches of {self.export.batch_size}"
        return [
            *rows,
            ("latency of one image, ms", f"{self.export.latency_ms:.1f}", f"{self.original.latency_ms:.1f}"),
            (batch, f"{self.export.images_per_s:.1f}", f"{self.original.images_per_s:.1f}"),
            ("size, MB", _megabytes(self.export.size_bytes), _megabytes(self.original.size_bytes)),
        ]

    def __str__(self) -> str:
        word = "passed" if self.passed else "refused"
        return f"{word} on {self.num_images} images: {self.reason or f'the limit is {self.limit}'}"


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f}"
