import pytest
import torch

from foveal.engine.device import open_device
from foveal.errors import FovealError


def test_devices_are_opened_by_name() -> None:
    assert open_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cudda", "device 'cudda' is not known; choose cpu, cuda, mps; did you mean 'cuda'?"),
        ("gpu", "did you mean 'cuda'?"),
        ("meta", "device 'meta' is not known"),
        ("cuda:9999", "device 'cuda:9999' cannot be used here"),
    ],
)
def test_devices_that_are_not_here_are_named(name: str, message: str) -> None:
    with pytest.raises(FovealError) as found:
        open_device(name)
    assert message in str(found.value)
    assert "\n" not in str(found.value)
