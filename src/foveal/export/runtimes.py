"""The optional packages of exports, imported when they are used."""

import importlib
from typing import Any

from foveal.export.card import ExportError


def require(*packages: str, extra: str = "export") -> list[Any]:
    """Import optional packages.

    Raises:
        ExportError: one is not installed; the message names the extra that brings it.
    """
    found = []
    for package in packages:
        try:
            found.append(importlib.import_module(package))
        except ImportError as error:
            raise ExportError(f"{package} cannot be imported ({error}); run pip install 'foveal[{extra}]'") from error
    return found
