"""The ledger of bad images: what was skipped and why, and the point at which skipping must stop."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from foveal.errors import ImageSetError


class BadImageLedger:
    """Record each bad image of a set once, and stop the run when there are too many.

    The share is counted in distinct images over the size of the whole set, since the first bad image among three seen
    would otherwise look like a third. One bad image is always tolerated, so that a set of fewer than 1 / max_bad_share
    images does not stop at its first; max_bad_share=0 tolerates none.

    One process owns a ledger; workers hand it their errors. Each line of the file is one JSON object with uri, reason
    and message. An existing file is continued; a last line cut off by a crash is dropped.

    Args:
        path: the JSONL file.
        num_images: size of the whole set.
        max_bad_share: 0 to 1.

    Raises:
        ImageSetError: when the file is damaged or already holds too many bad images for `max_bad_share`.
    """

    def __init__(self, path: str | Path, num_images: int, max_bad_share: float = 0.01) -> None:
        if num_images < 1 or not 0 <= max_bad_share <= 1:
            raise ImageSetError(
                f"num_images={num_images}, max_bad_share={max_bad_share}; allowed: 1 or more, and a share from 0 to 1"
            )
        self.path = Path(path)
        self.num_images = num_images
        self.max_bad_share = max_bad_share
        self._reasons = self._load()
        self._check()

    def __len__(self) -> int:
        """The number of distinct bad images."""
        return len(self._reasons)

    def __contains__(self, uri: object) -> bool:
        return uri in self._reasons

    @property
    def counts(self) -> dict[str, int]:
        """The number of bad images by reason, most frequent first."""
        return dict(Counter(self._reasons.values()).most_common())

    @property
    def max_bad(self) -> int:
        """The largest number of bad images that is tolerated."""
        return max_bad_of(self.num_images, self.max_bad_share)

    def record(self, uri: str, *, reason: str, message: str) -> bool:
        """Write down one bad image, unless it is known already.

        Returns:
            True when the image is new to the ledger.

        Raises:
            ImageSetError: with the counts by reason, when this image is one too many. It is recorded all the same.
        """
        if uri in self._reasons:
            return False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"uri": uri, "reason": reason, "message": message}) + "\n")
        self._reasons[uri] = reason
        self._check()
        return True

    def _check(self) -> None:
        if len(self) <= self.max_bad:
            return
        counts = listed(self.counts)
        raise ImageSetError(
            f"{len(self)} of {self.num_images} images are bad ({counts}), allowed are {self.max_bad} "
            f"(max_bad_share={self.max_bad_share}); see {self.path}, repair or remove them, or raise max_bad_share"
        )

    def _load(self) -> dict[str, str]:
        if not self.path.exists():
            return {}
        whole, _, cut = self.path.read_bytes().rpartition(b"\n")
        if cut:
            with self.path.open("r+b") as file:
                file.truncate(len(whole) + 1 if whole else 0)
        try:
            entries = [json.loads(line) for line in whole.splitlines()]
            return {entry["uri"]: entry["reason"] for entry in entries}
        except (ValueError, KeyError, TypeError) as error:
            raise ImageSetError(
                f"{self.path} is not a ledger of bad images ({error!r}); remove it to start a new one"
            ) from error


def max_bad_of(num_images: int, max_bad_share: float) -> int:
    """Return how many bad images a set may hold: the share of its size, but one at least where the share is above 0."""
    tolerated = int(max_bad_share * num_images + 1e-9)  # 0.29 * 100 is a little below 29
    return max(1, tolerated) if max_bad_share > 0 else 0


def listed(bad: Mapping[str, int]) -> str:
    """Return the bad images by reason as text, the most frequent first, with what to install where that helps.

    Example:
        >>> listed({"empty": 1, "truncated": 3})
        '3 truncated, 1 empty'
    """
    hints = {"needs_extra": " for TIFF bands or DICOM: pip install 'foveal[tiff,dicom]'"}
    counts = Counter(bad).most_common()
    return ", ".join(f"{count} {reason}{hints.get(reason, '')}" for reason, count in counts) or "the set is empty"
