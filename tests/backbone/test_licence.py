"""Terms are never loosened: not by inheritance, not by an acceptance of something else."""

import re

import pytest

from foveal.backbone.licence import NAMED, OWN, STRICTNESS, UNKNOWN, Licence, accept, licence_named, strictest
from foveal.errors import LicenceError

APACHE, MIT, NON_COMMERCIAL = NAMED["Apache-2.0"], NAMED["MIT"], NAMED["CC-BY-NC-4.0"]
CUSTOM = Licence(name="DINOv3 License", terms="custom", url="https://x.org/dinov3")


@pytest.mark.parametrize(
    ("parents", "name", "terms"),
    [
        ([], "own", "own"),
        ([OWN, OWN], "own", "own"),
        ([OWN, APACHE], "Apache-2.0", "permissive"),
        ([APACHE, MIT, APACHE], "Apache-2.0 AND MIT", "permissive"),
        ([APACHE, NON_COMMERCIAL], "CC-BY-NC-4.0", "non-commercial"),
        ([CUSTOM, OWN, NON_COMMERCIAL], "DINOv3 License AND CC-BY-NC-4.0", "non-commercial"),
        ([NON_COMMERCIAL, UNKNOWN], "CC-BY-NC-4.0 AND unknown", "unknown"),
    ],
)
def test_child_inherits_the_strictest_terms_and_every_binding_licence(
    parents: list[Licence], name: str, terms: str
) -> None:
    child = strictest(parents)
    assert (child.name, child.terms) == (name, terms)
    reverse = strictest(parents[::-1])
    assert reverse.terms == terms
    assert sorted(reverse.name.split(" AND ")) == sorted(name.split(" AND "))


def test_strictness_ends_with_what_is_unknown() -> None:
    assert STRICTNESS == ("own", "permissive", "custom", "non-commercial", "unknown")
    assert strictest([CUSTOM, NON_COMMERCIAL]).url == f"{CUSTOM.url} {NON_COMMERCIAL.url}"


def test_acceptance_is_not_inherited() -> None:
    accepted = accept(NON_COMMERCIAL, what="m", action="export", name="CC-BY-NC-4.0")
    assert strictest([accepted, APACHE]).accepted == ()


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("apache-2.0", "permissive"),
        (" CC-BY-NC-4.0", "non-commercial"),
        ("unknown", "unknown"),
        ("your own: trained from scratch by foveal on the images named in lineage", "own"),
        ("Apache", "unknown"),
        ("", "unknown"),
    ],
)
def test_name_that_is_not_known_has_unknown_terms(text: str, terms: str) -> None:
    assert licence_named(text).terms == terms


@pytest.mark.parametrize("licence", [OWN, APACHE])
def test_free_terms_need_no_acceptance(licence: Licence) -> None:
    assert accept(licence, what="m", action="export", name=None) == licence


@pytest.mark.parametrize("licence", [CUSTOM, NON_COMMERCIAL, UNKNOWN])
def test_other_terms_are_refused_until_accepted_by_name(licence: Licence) -> None:
    option = re.escape(
        f"--accept-licence '{licence.name}'" if " " in licence.name else f"--accept-licence {licence.name}"
    )
    with pytest.raises(LicenceError, match=rf"export of m: its licence is {licence.name} .*{option}"):
        accept(licence, what="m", action="export", name=None)
    with pytest.raises(LicenceError, match=rf"Apache-2\.0 was accepted, but its licence is {licence.name}"):
        accept(licence, what="m", action="serve", name="Apache-2.0")
    accepted = accept(licence, what="m", action="serve", name=licence.name.upper())
    assert [acceptance.action for acceptance in accepted.accepted] == ["serve"]
    assert accepted.accepted[0].at.endswith("+00:00")
    assert accept(accepted, what="m", action="serve", name=None) == accepted


def test_acceptance_counts_for_its_action_only() -> None:
    exported = accept(NON_COMMERCIAL, what="m", action="export", name="CC-BY-NC-4.0")
    with pytest.raises(LicenceError, match=r"serve of m: its licence is CC-BY-NC-4\.0"):
        accept(exported, what="m", action="serve", name=None)
    both = accept(exported, what="m", action="serve", name="CC-BY-NC-4.0")
    assert [acceptance.action for acceptance in both.accepted] == ["export", "serve"]
    assert accept(both, what="m", action="export", name=None) == both


@pytest.mark.parametrize("earlier", [None, {"by": "x", "at": "2026-01-01T00:00:00+00:00", "action": "export"}])
def test_acceptance_of_earlier_cards_is_read(earlier: dict | None) -> None:
    licence = Licence.model_validate({**CUSTOM.model_dump(), "accepted": earlier})
    assert len(licence.accepted) == bool(earlier)
