"""What a server is told: where it listens, how much it accepts, and who may ask."""

import os
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from foveal.errors import FovealError, RecipeError
from foveal.settings import Settings, keys_of, override, problem

MIB = 1024 * 1024


class ServeSettings(Settings):
    """Settings of a server; see docs/serve.md.

    Attributes:
        host: address to listen on.
        port: 0 takes any that is free.
        max_batch: images in a batch, a power of two; batches have 1, 2, 4 and so on up to it.
        max_wait_ms: how long an image waits for company.
        max_queue: images accepted and not yet answered; more are told to come again.
        max_connections: open at once; more are closed.
        max_images: of one request.
        max_body_bytes: of one request.
        max_bodies_bytes: of all requests that are being answered, with the images fetched for them.
        max_pixels: of one image, as its header claims them.
        max_scans: of a JPEG.
        max_patches: that one image becomes.
        max_json_values: numbers in one answer as JSON; more are had as npy.
        max_answer_bytes: of arrays in one answer, as they are computed.
        timeout_s: the longest time for an answer, and that of requests that name none.
        header_timeout_s: for the headers of a request to arrive.
        body_timeout_s: for its body.
        write_timeout_s: for a client to take more of its answer.
        keep_alive_s: for the next request on a connection.
        drain_s: at the end, for what was accepted to be answered.
        decode_threads: that open images.
        api_keys: any of which a request must carry; none: everybody may ask.
        admin_key: for models to be exchanged; None: nobody may.
        tls_certificate: PEM file.
        tls_key: PEM file.
        allow_urls: hosts from which images may be fetched.
        insecure: listen to other computers without keys.
    """

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    max_batch: int = Field(8, ge=1, le=1024)
    max_wait_ms: float = Field(2.0, ge=0, le=10_000)
    max_queue: int = Field(256, ge=1)
    max_connections: int = Field(1000, ge=1)
    max_images: int = Field(64, ge=1)
    max_body_bytes: int = Field(16 * MIB, ge=1)
    max_bodies_bytes: int = Field(128 * MIB, ge=1)
    max_pixels: int = Field(25_000_000, ge=1)
    max_scans: int = Field(50, ge=1)
    max_patches: int = Field(8192, ge=1)
    max_json_values: int = Field(2_000_000, ge=1)
    max_answer_bytes: int = Field(256 * MIB, ge=1)
    timeout_s: float = Field(30.0, gt=0, le=3600)
    header_timeout_s: float = Field(10.0, gt=0)
    body_timeout_s: float = Field(30.0, gt=0)
    write_timeout_s: float = Field(30.0, gt=0)
    keep_alive_s: float = Field(30.0, gt=0)
    drain_s: float = Field(8.0, ge=0)
    decode_threads: int = Field(2, ge=1)
    api_keys: tuple[str, ...] = ()
    admin_key: str | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    allow_urls: tuple[str, ...] = ()
    insecure: bool = False

    @model_validator(mode="after")
    def _check(self) -> "ServeSettings":
        if self.max_batch & (self.max_batch - 1):
            raise ValueError(f"max_batch={self.max_batch}; choose a power of two")
        if self.max_images > self.max_queue:
            raise ValueError(f"max_queue={self.max_queue} takes no request of max_images={self.max_images}")
        if self.max_body_bytes > self.max_bodies_bytes:
            raise ValueError(f"max_bodies_bytes={self.max_bodies_bytes} takes no body of {self.max_body_bytes}")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together; give both")
        for key in (*self.api_keys, *([] if self.admin_key is None else [self.admin_key])):
            if len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError("a key has at least 16 characters of printable ASCII without spaces")
        if not self.api_keys and not self.insecure and not _is_loopback(self.host):
            raise ValueError(
                f"host={self.host} listens to other computers, and there are no API keys; set api_keys or "
                "FOVEAL_API_KEYS, or give --insecure"
            )
        return self

    @property
    def buckets(self) -> tuple[int, ...]:
        """Sizes of batches, ascending."""
        return tuple(1 << power for power in range(self.max_batch.bit_length()))


def read_settings(
    file: Path | None = None,
    *,
    given: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> ServeSettings:
    """Return the settings that a file, the environment and the command line make, the later over the earlier.

    Args:
        file: YAML of keys and values.
        given: options that were typed, by their keys.
        overrides: like "max_batch=16".
        environment: `FOVEAL_API_KEYS` (separated by commas) and `FOVEAL_ADMIN_KEY` are read.

    Raises:
        FovealError: a file that cannot be read, an unknown key, or a value that is not allowed.
    """
    known = keys_of(ServeSettings)
    values = _read(file) if file else {}
    if keys := [key for key in environment.get("FOVEAL_API_KEYS", "").split(",") if key]:
        values["api_keys"] = keys
    if key := environment.get("FOVEAL_ADMIN_KEY"):
        values["admin_key"] = key
    values.update(given or {})
    try:
        override(values, overrides, known=known, texts=("host", "admin_key"), example="max_batch=16")
        return ServeSettings.model_validate(values)
    except ValidationError as error:
        detail = error.errors()[0]
        raise FovealError(_without_secrets(problem(detail, known), detail).replace("recipe key", "setting")) from error
    except RecipeError as error:
        raise FovealError(str(error).replace("recipe key", "setting")) from error


def _without_secrets(message: str, detail: Any) -> str:
    """Leave the value out of a message about keys."""
    secret = detail["loc"] and detail["loc"][0] in ("api_keys", "admin_key")
    return message.partition(" (got ")[0] if secret else message


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise FovealError(f"settings file {file} cannot be read ({error}); check the path") from error
    except yaml.YAMLError as error:
        raise FovealError(f"settings file {file} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise FovealError(f"settings file {file} holds {type(values).__name__}, expected keys and values")
    return values


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
