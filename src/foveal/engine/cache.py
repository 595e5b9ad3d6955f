"""Where verdicts and calibrations are kept between runs."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder for what can be computed or downloaded again: FOVEAL_HOME, else ~/.cache/foveal."""
    home = os.environ.get("FOVEAL_HOME")
    return Path(home) if home else Path.home() / ".cache" / "foveal"
