"""Cards: what they inherit, what they remember, and that old ones are still read."""

import json
from pathlib import Path

import pytest

from foveal.backbone.card import Card, inherit, read_card, require_permission, write_card
from foveal.backbone.licence import NAMED, OWN
from foveal.backbone.variants import backbone_config
from foveal.errors import LicenceError, WeightsError

CONFIG = backbone_config("vit_nano", patch_size=14, image_size=28)
NON_COMMERCIAL = NAMED["CC-BY-NC-4.0"]


def card(name: str = "nano", **values: object) -> Card:
    return Card(name=name, backbone=CONFIG, **values)


def test_licence_may_be_given_by_name() -> None:
    assert card(licence="CC-BY-NC-4.0").licence == NON_COMMERCIAL
    assert card().licence.terms == "unknown"


@pytest.mark.parametrize(
    ("sentence", "terms"),
    [("your own: trained from scratch by foveal on the images named in lineage", "own"), ("unknown", "unknown")],
)
def test_card_of_format_1_is_read(tmp_path: Path, sentence: str, terms: str) -> None:
    values = card().model_dump(mode="json", exclude={"parents"}) | {"format_version": 1, "licence": sentence}
    (tmp_path / "model.json").write_text(json.dumps(values))
    read = read_card(tmp_path)
    assert (read.format_version, read.licence.terms, read.parents) == (2, terms, [])


def test_card_of_a_later_format_says_to_upgrade(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(card().model_dump(mode="json") | {"format_version": 3}))
    with pytest.raises(WeightsError, match="of format 3, this foveal reads up to 2; upgrade foveal"):
        read_card(tmp_path)


def test_child_lists_its_parents_with_hashes_and_takes_their_strictest_terms() -> None:
    parents = [
        card("a", licence="Apache-2.0", sha256={"model.safetensors": "1"}),
        require_permission(card("b", licence=NON_COMMERCIAL), action="export", accept_licence="CC-BY-NC-4.0"),
    ]
    child = inherit(card("c", licence=OWN), parents)
    assert child.licence == NON_COMMERCIAL  # and nobody accepted it for the child
    assert [(parent.name, parent.sha256) for parent in child.parents] == [("a", {"model.safetensors": "1"}), ("b", {})]
    assert child.parents[1].licence == NON_COMMERCIAL
    grandchild = inherit(card("d", licence=OWN), [child])
    assert grandchild.licence == NON_COMMERCIAL


def test_acceptance_is_written_into_the_model_folder_and_asked_for_once(tmp_path: Path) -> None:
    model = card(licence=NON_COMMERCIAL)
    write_card(tmp_path, model)
    with pytest.raises(LicenceError, match=r"export of nano: .*CC-BY-NC-4\.0.* --accept-licence CC-BY-NC-4\.0"):
        require_permission(model, action="export", folder=tmp_path)
    assert read_card(tmp_path) == model
    require_permission(model, action="export", accept_licence="CC-BY-NC-4.0", folder=tmp_path)
    read = read_card(tmp_path)
    assert read.licence.accepted[0].by
    assert require_permission(read, action="export", folder=tmp_path) == read
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]


def test_acceptance_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.json cannot be written .*make the folder writable"):
        require_permission(
            card(licence=NON_COMMERCIAL), action="serve", accept_licence="CC-BY-NC-4.0", folder=tmp_path / "no"
        )
