"""Label Studio's smart tools: points and boxes on a picture ask for a mask at once.

Source: the public protocol, labelstud.io/guide/ml_create: the context of a question holds the results that ask. Places
are percentages of the picture's sides, from their edges.
"""

from collections.abc import Mapping
from typing import Any

from foveal.annotate.formats.documents import field, number
from foveal.annotate.types import AnnotatedImage, Prompt
from foveal.errors import FovealError

_TOOLS = ("keypointlabels", "rectanglelabels")
MOST_RESULTS = 1000


def prompts_of(context: Mapping[str, Any], image: AnnotatedImage) -> tuple[str, list[Prompt]]:
    """Return the class that is asked for, and what was done on the picture, in its order.

    Args:
        context: of the question.
        image: the picture.

    Raises:
        FovealError: results of other tools, or what is no place on a picture.
    """
    results = field(context, "result", list, where="the context")
    if not 0 < len(results) <= MOST_RESULTS:
        raise FovealError(f"the context has {len(results)} results; give 1 to {MOST_RESULTS} points and boxes")
    found = [_prompt(result, image, where=f"result {place + 1}") for place, result in enumerate(results)]
    return found[-1][0], [prompt for _, prompt in found]


def _prompt(result: Any, image: AnnotatedImage, *, where: str) -> tuple[str, Prompt]:
    value = field(result, "value", Mapping, where=where)
    tool = next((name for name in _TOOLS if name in value), None)
    labels = value.get(tool) if tool else None
    if not isinstance(labels, list) or not labels or not isinstance(labels[0], str):
        raise FovealError(f"{where} is no point or box with a label; smart tools are {' and '.join(_TOOLS)}")
    x, y = _pixel(value, "x", image.width, where), _pixel(value, "y", image.height, where)
    is_positive = bool(result.get("is_positive", True))
    if tool == "keypointlabels":
        return labels[0], Prompt("point", ((x, y),), is_positive)
    right = x + number(value.get("width"), where=where) * image.width / 100
    bottom = y + number(value.get("height"), where=where) * image.height / 100
    return labels[0], Prompt("box", ((x, y), (right, bottom)), is_positive)


def _pixel(value: Mapping[str, Any], name: str, side: int, where: str) -> float:
    """Return a place in pixels whose centres are whole numbers, within the picture."""
    return min(max(number(value.get(name), where=where) * side / 100 - 0.5, 0.0), side - 1.0)
