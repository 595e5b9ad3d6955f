"""One tree of errors. Every message says what was seen, what is allowed and what to do next."""

import difflib
from collections.abc import Iterable


class FovealError(Exception):
    """Something the user can put right. The command line prints it without a traceback and exits with code 2."""


class BadImageError(FovealError):
    """One image that cannot be used. `reason` is a short, stable word to count by, e.g. "truncated"."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["BadImageError"], tuple[str, str]]:
        """Keep both arguments when the error crosses a process border (data-loading workers)."""
        return type(self), (self.reason, str(self))


class ImageSetError(FovealError):
    """A source of images that cannot be read, is empty, or holds too many bad images."""


class WeightsError(FovealError):
    """A model folder or a weights file that is missing, damaged, or does not fit its card."""


class LicenceError(FovealError):
    """An action that the licence of some weights does not allow without the user having accepted its terms."""


class DownloadError(FovealError):
    """A file that cannot be fetched, kept or trusted. Nothing that was there before is lost."""


class RecipeError(FovealError):
    """A recipe or an override with an unknown key, a wrong value, or values that contradict each other."""


class RunError(FovealError):
    """A run folder that cannot be created, continued or trusted."""


class CheckpointError(RunError):
    """A checkpoint that could not be written or is damaged."""


class ProjectError(FovealError):
    """An annotation project that cannot be created, opened or changed in this way; nothing in it is lost."""


class UnwritableProjectError(ProjectError):
    """An annotation project that cannot be written now, as on a full disk; the same change may be made later."""


class DivergedError(RunError):
    """Training produced too many non-finite losses or gradients in a row."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the allowed name nearest to `name`, or an empty string when none is near.

    Example:
        >>> nearest("batch_sise", ["batch_size", "seed"])
        "; did you mean 'batch_size'?"
    """
    close = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
