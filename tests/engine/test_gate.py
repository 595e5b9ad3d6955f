import logging
from pathlib import Path

import pytest
import torch

from foveal.backbone.vit import Tokens
from foveal.engine import gate
from foveal.engine.gate import Agreement


def _tokens(angle: float) -> Tokens:
    cls = torch.tensor([[1.0, 0.0], [torch.tensor(angle).cos(), torch.tensor(angle).sin()]])
    return Tokens(cls, torch.zeros(2, 0, 2), torch.tensor([[1.0, 0.0]]).expand(2, 3, 2))


def test_agreement_is_the_cosine_of_the_angle() -> None:
    found = gate.agreement([_tokens(0.1)], [_tokens(0.0)])
    assert found.cls_min == pytest.approx(0.995004165, abs=1e-6)
    assert found.cls_mean == pytest.approx((1 + 0.995004165) / 2, abs=1e-6)
    assert (found.patch_min, found.patch_mean, found.num_images) == (1, 1, 2)


def test_a_token_that_is_not_finite_never_passes() -> None:
    found = gate.agreement([_tokens(float("nan"))], [_tokens(0.0)])
    assert found.cls_min == 0
    assert not found.passes(0.5)


@pytest.mark.parametrize(
    ("values", "passes"),
    [
        ((0.9999, 1, 0.9991, 0.9999), True),
        ((0.99989, 1, 1, 1), False),
        ((1, 1, 0.998, 1), False),
        ((1, 1, 0.9995, 0.9998), False),
    ],
)
def test_limit_holds_class_tokens_mean_patch_and_worst_patch(values: tuple, passes: bool) -> None:
    assert Agreement(*values, num_images=8).passes(0.9999) is passes


def test_verdicts_are_kept_by_their_conditions(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    measured = Agreement(0.5, 0.6, 0.7, 0.8, 8)
    gate.remember({"weights": "a", "layers": (1, 2)}, measured)
    assert gate.recall({"weights": "a", "layers": (1, 2)}) == measured
    assert gate.recall({"weights": "b", "layers": (1, 2)}) is None
    gate.remember({"weights": "c"}, measured._replace(num_images=7))
    assert gate.recall({"weights": "c"}) is None
    (file,) = (home / "verdicts").iterdir()
    file.write_text("{")
    with caplog.at_level(logging.WARNING):
        assert gate.recall({"weights": "a", "layers": (1, 2)}) is None
    assert "cannot be used" in caplog.text


def test_cache_that_cannot_be_written_is_a_warning(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    home.write_text("a file where the folder should be")
    gate.remember({"weights": "a"}, Agreement(1, 1, 1, 1, 8))
    assert "set FOVEAL_HOME" in caplog.text


def test_a_cosine_below_the_limit_is_not_shown_as_the_limit() -> None:
    assert gate.shown(0.99989999) == "0.999899"
