"""The guard before every update: steps that do not count, and the way back when several in a row do not.

A step whose loss or gradient norm is not finite changes nothing: it is skipped. Three in a row say that the weights
have gone astray some time before. The run then goes back to the last checkpoint from before the three and on with the
step after them, which leaves out the batches in between: the way out of loss spikes of arXiv 2204.02311, section 5.1.
If it would have to go back to the same weights a second time, other batches were no help, and it stops.

What happens is a function of the recipe and its images. Checkpoints of interruptions are therefore no place to go back
to, only those at multiples of `checkpoints.every_steps`.
"""

import logging
from typing import Any

IN_A_ROW = 3

logger = logging.getLogger(__name__)


class Guard:
    """Remembers which steps of a run did not count.

    Attributes:
        skipped: the steps that were not finite, ascending.
        undone: (first, next) of each way back: the steps first .. next - 1 do not count, finite or not.
    """

    def __init__(self) -> None:
        self.skipped: list[int] = []
        self.undone: list[tuple[int, int]] = []

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"skipped": self.skipped, "undone": [list(span) for span in self.undone]}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint kept."""
        self.skipped = list(state["skipped"])
        self.undone = [(first, following) for first, following in state["undone"]]

    def skip(self, step: int) -> bool:
        """Note that a step was not finite; True when it was one too many in a row, and the run has to go back."""
        self.skipped.append(step)
        logger.warning("step %d is not finite and was skipped (%d so far)", step, len(self.skipped))
        row = range(step - IN_A_ROW + 1, step + 1)
        return row[0] >= self._since and self.skipped[-IN_A_ROW:] == list(row)

    def ways_back(self, step: int, *, every_steps: int) -> range:
        """Return the steps whose checkpoints may be gone back to from the last of the steps in a row, ascending.

        Those made after an earlier way back, for the others lead to where that began or lie in what it undid.

        Args:
            step: the last one.
            every_steps: of the regular checkpoints.
        """
        return range((self._since // every_steps + 1) * every_steps, step - IN_A_ROW + 2, every_steps)

    @property
    def _since(self) -> int:
        """The step that came after the last way back, or the first step."""
        return self.undone[-1][1] if self.undone else 0

    def go_back(self, to: int, *, step: int) -> None:
        """Note that the weights are again those of before step `to`, and that the next step is the one after `step`."""
        self.undone.append((to, step + 1))
        logger.warning(
            "%d steps in a row are not finite: went back to the checkpoint of step %d; steps %d to %d are left out",
            IN_A_ROW,
            to,
            to,
            step,
        )
