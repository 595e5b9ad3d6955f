"""Settings from a file, the environment and the command line, and what they refuse."""

from pathlib import Path

import pytest

from foveal.errors import FovealError
from foveal.serve.settings import ServeSettings, read_settings

KEY = "0123456789abcdef"


def test_the_later_wins(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("port: 1\nmax_batch: 4\nmax_queue: 99\n")
    found = read_settings(
        file,
        given={"port": 2},
        overrides=["max_queue=100"],
        environment={"FOVEAL_API_KEYS": f"{KEY},{KEY}2", "FOVEAL_ADMIN_KEY": f"{KEY}3"},
    )
    assert (found.port, found.max_batch, found.max_queue) == (2, 4, 100)
    assert found.api_keys == (KEY, f"{KEY}2")
    assert found.admin_key == f"{KEY}3"
    assert found.buckets == (1, 2, 4)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["max_batsch=4"], "unknown setting 'max_batsch'; did you mean 'max_batch'"),
        (["max_batch=6"], "max_batch=6; choose a power of two"),
        (["max_queue=10"], "max_queue=10 takes no request of max_images=64"),
        (["host=0.0.0.0"], "host=0.0.0.0 listens to other computers, and there are no API keys"),
        (["tls_key=key.pem"], "tls_certificate and tls_key belong together"),
        (["admin_key=short"], "a key has at least 16 characters"),
        (["timeout_s=0"], "timeout_s: Input should be greater than 0"),
    ],
)
def test_what_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(FovealError, match=words.replace(".", r"\.")) as error:
        read_settings(overrides=overrides, environment={})
    assert "short" not in str(error.value)


@pytest.mark.parametrize("change", [{"insecure": True}, {"api_keys": (KEY,)}])
def test_other_computers_are_listened_to_on_purpose(change: dict) -> None:
    assert ServeSettings(host="0.0.0.0", **change).host == "0.0.0.0"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_this_computer_needs_no_keys(host: str) -> None:
    assert ServeSettings(host=host).api_keys == ()


def test_a_key_of_a_wrong_type_is_not_repeated() -> None:
    with pytest.raises(FovealError) as error:
        read_settings(given={"admin_key": 12345678901234567890}, environment={})
    assert "12345678901234567890" not in str(error.value)
