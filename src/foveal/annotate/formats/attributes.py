"""What other tools have no place for of their own, as attributes that they carry along: state, source and track."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from foveal.annotate.types import Annotation, Source, State

NAMES = ("state", "source", "track_id")
_SHOWN = 10
_STATES: dict[Any, State] = {name: name for name in get_args(State)}
_SOURCES: dict[Any, Source] = {name: name for name in get_args(Source)}


def kept_in(one: Annotation) -> dict[str, str]:
    """Return the attributes of an annotation that differ from those of one that was made elsewhere."""
    kept: dict[str, str] = {} if one.state == "accepted" else {"state": one.state}
    if one.source != "imported":
        kept["source"] = one.source
    return kept if one.track is None else {**kept, "track_id": one.track}


def others_in(attributes: Any) -> list[str]:
    """Return the names of attributes that say something and are none of ours."""
    found = attributes.items() if isinstance(attributes, Mapping) else ()
    return [str(name) for name, value in found if name not in (*NAMES, "score") and value not in (None, False, "")]


def left_out(names: Mapping[str, int]) -> list[str]:
    """Say which attributes of annotations were left out.

    Args:
        names: of attributes, with the number of annotations that have them.
    """
    shown = ", ".join(f"{name} ({count})" for name, count in sorted(names.items())[:_SHOWN])
    return [f"attributes of annotations are left out: {shown}{', ...' if len(names) > _SHOWN else ''}"] if names else []


def restored(one: Annotation, attributes: Any) -> Annotation:
    """Return an annotation with what its attributes say; values that are none of ours are another tool's."""
    if not isinstance(attributes, Mapping):
        return one
    track = attributes.get("track_id")
    return replace(
        one,
        state=_STATES.get(str(attributes.get("state")), one.state),
        source=_SOURCES.get(str(attributes.get("source")), one.source),
        track=str(track) if isinstance(track, str | int) and track not in ("", True, False) else one.track,
    )
