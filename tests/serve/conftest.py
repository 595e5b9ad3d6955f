"""Coroutines as tests, and a tiny model for all of them."""

import pytest
from serving import tiny_model

from foveal.features.extract import Model


@pytest.fixture(scope="session")
def model() -> Model:
    return tiny_model()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
