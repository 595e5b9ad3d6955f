"""Settings in YAML: the recipes of the package, files of one's own, and `key=value` over both."""

import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from foveal.errors import RecipeError, nearest


class Settings(BaseModel):
    """A section of a recipe: unknown keys are errors, and nothing changes once it is checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def built_in_recipes(key: str) -> list[str]:
    """Return the names of the recipes that come with the package and have this key at the top: those of one kind."""
    folder = resources.files("foveal") / "recipes"
    files = {item.name.removesuffix(".yaml"): item for item in folder.iterdir() if item.name.endswith(".yaml")}
    return sorted(name for name, file in files.items() if re.search(rf"^{key}:", file.read_text(), re.MULTILINE))


def read_recipe(name: str, *, key: str) -> dict[str, Any]:
    """Read a recipe as plain values.

    Args:
        name: one of `built_in_recipes(key)`, or the path of a YAML file.
        key: that all recipes of the kind have.

    Raises:
        RecipeError: it does not exist or is no YAML of keys and values.
    """
    names = built_in_recipes(key)
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise RecipeError(f"recipe file {path} does not exist; built-in recipes: {', '.join(names)}")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe file {path} cannot be read: {error}") from error
    elif name in names:
        text = (resources.files("foveal") / "recipes" / f"{name}.yaml").read_text()
    else:
        raise RecipeError(f"unknown recipe '{name}'{nearest(name, names)}; built in: {', '.join(names)}")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"recipe '{name}' is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"recipe '{name}' holds {type(values).__name__}, expected keys and values")
    found: dict[str, Any] = _number(values)
    return found


def override(
    values: dict[str, Any], overrides: Sequence[str], *, known: Sequence[str], texts: Iterable[str], example: str
) -> None:
    """Put `key=value` into plain values, in place.

    Args:
        values: of a recipe.
        overrides: like "optimizer.base_lr=1e-3"; values are YAML.
        known: every key that there is, dotted.
        texts: keys whose values are taken as they are.
        example: for the message where one is no override.

    Raises:
        RecipeError: no `=`, an unknown key (the nearest is named), or a value that is no YAML.
    """
    for one in overrides:
        key, found, text = one.partition("=")
        if not found:
            raise RecipeError(f"'{one}' is not an override; write key=value, such as {example}")
        check_known([key], known)
        try:
            _set(values, key.split("."), text if key in texts or not text else _number(yaml.safe_load(text)))
        except yaml.YAMLError as error:
            raise RecipeError(f"{key}={text} cannot be read as a value: {error}") from error


def check_known(keys: Iterable[str], known: Sequence[str]) -> None:
    """Raise a RecipeError, naming the nearest, for a key that is not known."""
    for key in keys:
        if key not in known:
            raise RecipeError(f"unknown recipe key '{key}'{nearest(key, known)}")


def keys_of(model: type, prefix: str = "") -> list[str]:
    """Return every dotted key of a class of settings, pydantic model or dataclass."""
    keys = []
    for name, annotation in _annotations(model).items():
        keys.append(prefix + name)
        for part in (annotation, *getattr(annotation, "__args__", ())):
            if isinstance(part, type) and _annotations(part):
                keys += keys_of(part, f"{prefix}{name}.")
    return keys


def problem(detail: Any, known: Sequence[str]) -> str:
    """Return one error of pydantic in words.

    Args:
        detail: one of `ValidationError.errors()`.
        known: every key that there is, dotted.
    """
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "missing":
        return f"{key} is missing; add {key}=..."
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown recipe key '{key}'{nearest(key, known)}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{key}: {message} (got {detail['input']!r})" if key and detail["type"] != "value_error" else message


def _annotations(model: type) -> dict[str, Any]:
    if issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    return {name: field.type for name, field in getattr(model, "__dataclass_fields__", {}).items()}


def _number(value: Any) -> Any:
    """Read 1e-3 as a number: YAML 1.1 wants a point and a sign, people leave them out."""
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() else value
        except ValueError:
            return value
    return value


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[path[-1]] = value
