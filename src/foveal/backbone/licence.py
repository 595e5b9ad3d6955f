"""Licences of weights: their terms, what a child inherits, and what has to be accepted before weights are passed on."""

import getpass
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, field_validator

from foveal.errors import LicenceError

Terms = Literal["own", "permissive", "custom", "non-commercial", "unknown"]

# From the loosest to the strictest. "own": made here, from nobody's weights. "permissive": use is free, credit is due.
# "custom": the owner's own text, to be read. "unknown" is last: where nothing is granted, nothing is allowed.
STRICTNESS: tuple[Terms, ...] = get_args(Terms)

# Terms under which weights may be exported or served without anybody saying that they have read them.
FREE: frozenset[Terms] = frozenset({"own", "permissive"})


class Acceptance(BaseModel):
    """Who accepted the terms of a licence, when (UTC), and for what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    by: str
    at: str
    action: str


class Licence(BaseModel):
    """The licence of some weights, as its owner states it.

    `accepted` belongs to one model folder: it is neither inherited nor copied, and counts for its action only, so that
    whoever exports a child, or serves what was exported, reads the terms again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    terms: Terms
    url: str | None = None
    accepted: tuple[Acceptance, ...] = ()

    @field_validator("accepted", mode="before")
    @classmethod
    def _from_single(cls, value: object) -> object:
        """Read earlier cards, which held one acceptance or null."""
        if value is None:
            return ()
        return (value,) if isinstance(value, dict) else value

    def unaccepted(self) -> "Licence":
        """Return the licence as it is for somebody else: accepted by nobody."""
        return self.model_copy(update={"accepted": ()})


OWN = Licence(name="own", terms="own")
UNKNOWN = Licence(name="unknown", terms="unknown")

_CREATIVE_COMMONS = "https://creativecommons.org/licenses"
# Licences that need no row of their own, by name.
NAMED: dict[str, Licence] = {
    licence.name: licence
    for licence in (
        OWN,
        UNKNOWN,
        Licence(name="Apache-2.0", terms="permissive", url="https://www.apache.org/licenses/LICENSE-2.0"),
        Licence(name="MIT", terms="permissive", url="https://opensource.org/license/mit"),
        Licence(name="BSD-3-Clause", terms="permissive", url="https://opensource.org/license/bsd-3-clause"),
        Licence(name="CC-BY-4.0", terms="permissive", url=f"{_CREATIVE_COMMONS}/by/4.0/"),
        Licence(name="CC-BY-NC-4.0", terms="non-commercial", url=f"{_CREATIVE_COMMONS}/by-nc/4.0/"),
    )
}


def licence_named(name: str) -> Licence:
    """Return the licence of that name, in any case; a name that is not known has unknown terms.

    Example:
        >>> licence_named("apache-2.0").terms
        'permissive'
        >>> licence_named("Somebody's own").terms
        'unknown'
    """
    for known, licence in NAMED.items():
        if name.strip().casefold() == known.casefold():
            return licence
    if name.casefold().startswith("your own:"):  # how cards of format 1 put it
        return OWN
    return Licence(name=name, terms="unknown")


def strictest(licences: Sequence[Licence]) -> Licence:
    """Return the licence of something made from weights under all of `licences`.

    Its terms are the strictest of theirs, in the order of `STRICTNESS`. Licences that restrict ("custom" and
    stricter) all go on binding, so each is named, joined by " AND " as in SPDX expressions; permissive ones are named
    only where nothing restricts. No licences at all: `OWN`.

    Example:
        >>> strictest([NAMED["Apache-2.0"], NAMED["CC-BY-NC-4.0"], OWN]).name
        'CC-BY-NC-4.0'
    """
    binding = [licence for licence in licences if licence.terms not in FREE]
    binding = binding or [licence for licence in licences if licence.terms == "permissive"]
    by_name = {licence.name: licence for licence in binding}
    if not by_name:
        return OWN
    return Licence(
        name=" AND ".join(by_name),
        terms=max((licence.terms for licence in binding), key=STRICTNESS.index),
        url=" ".join(dict.fromkeys(licence.url for licence in by_name.values() if licence.url)) or None,
    )


def accept(licence: Licence, *, what: str, action: str, name: str | None) -> Licence:
    """Return `licence` if it allows `action`, with a record of its acceptance if that was needed.

    Args:
        licence: of the weights.
        what: the model, for the message.
        action: what is about to be done, e.g. "export".
        name: the licence that the user accepts; None accepts nothing.

    Raises:
        LicenceError: the terms are not free and were not accepted for this action, or another licence was.
    """
    if licence.terms in FREE or any(acceptance.action == action for acceptance in licence.accepted):
        return licence
    option = f"--accept-licence {_quoted(licence.name)}"
    if name is None:
        read = f"read {licence.url} and " if licence.url else "find out its terms and "
        raise LicenceError(
            f"{action} of {what}: its licence is {licence.name} ({licence.terms} terms); {read}give {option} "
            "if your use is allowed; looking at its features needs no acceptance"
        )
    if name.strip().casefold() != licence.name.casefold():
        raise LicenceError(f"{action} of {what}: {name} was accepted, but its licence is {licence.name}; give {option}")
    record = Acceptance(by=_user(), at=datetime.now(UTC).isoformat(timespec="seconds"), action=action)
    return licence.model_copy(update={"accepted": (*licence.accepted, record)})


def _quoted(name: str) -> str:
    return f"'{name}'" if " " in name else name


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"
