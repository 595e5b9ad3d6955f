"""Adapters where the tool they are for is not installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from foveal.annotate.adapters import cvat, fiftyone
from foveal.annotate.types import AnnotatedSet
from foveal.errors import FovealError


@pytest.mark.skipif(find_spec("cvat_sdk") is not None, reason="cvat-sdk is installed")
def test_cvat_is_asked_for_before_a_model_is_opened(tmp_path: Path) -> None:
    with pytest.raises(FovealError, match="pip install cvat-sdk"):
        cvat.create(str(tmp_path / "project"), str(tmp_path / "model"))


def test_an_unknown_kind_of_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FovealError, match="kind='mask'; did you mean 'masks'"):
        cvat.create(str(tmp_path / "project"), str(tmp_path / "model"), kind="mask")


@pytest.mark.skipif(find_spec("fiftyone") is not None, reason="fiftyone is installed")
def test_fiftyone_is_asked_for() -> None:
    with pytest.raises(FovealError, match="pip install fiftyone"):
        fiftyone.add_annotations(None, AnnotatedSet((), (), ()))
