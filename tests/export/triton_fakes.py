"""Triton's side of its Python backend, and the values of its `config.pbtxt`, for tests without Triton."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np


class Tensor:
    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name, self.values = name, values

    def as_numpy(self) -> np.ndarray:
        return self.values


class Request:
    def __init__(self, asked: list[str], **tensors: np.ndarray) -> None:
        self.asked, self.tensors = asked, tensors

    def requested_output_names(self) -> list[str]:
        return self.asked


class TritonError:
    INVALID_ARG = 3

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.outputs = {tensor.name: tensor.values for tensor in output_tensors or []}
        self.error = error


def backend_utils() -> ModuleType:
    """Return what programs import as triton_python_backend_utils."""
    module = ModuleType("triton_python_backend_utils")
    vars(module).update(Tensor=Tensor, InferenceResponse=InferenceResponse, TritonError=TritonError)
    module.get_input_tensor_by_name = lambda request, name: Tensor(name, request.tensors[name])  # type: ignore[attr-defined]
    return module


def opened(repository: Path, name: str) -> Any:
    """Return the initialised program of a model; triton_python_backend_utils must be importable."""
    path = repository / name / "1/model.py"
    spec = importlib.util.spec_from_file_location(f"triton_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    program = module.TritonPythonModel()
    parameters = {key: {"string_value": value} for key, value in _parameters(config_of(repository, name)).items()}
    outputs = [{"name": one["name"]} for one in all_of(config_of(repository, name), "output")]
    config = json.dumps({"parameters": parameters, "output": outputs})
    program.initialize({"model_config": config, "model_instance_kind": "CPU", "model_instance_device_id": "0"})
    return program


def config_of(repository: Path, name: str) -> list[tuple[str, Any]]:
    """Return the fields of a configuration in their order; a message is again such a list."""
    text = re.sub(r"#.*", "", (repository / name / "config.pbtxt").read_text())
    words = re.findall(r'"[^"]*"|[\[\]{}:,]|[^\s\[\]{}:,]+', text)
    fields, rest = _fields(words)
    assert rest == []
    return fields


def all_of(fields: list[tuple[str, Any]], name: str) -> list[Any]:
    """Return the values of a field, messages as dictionaries."""
    return [
        dict(value) if isinstance(value, list) and value and isinstance(value[0], tuple) else value
        for field, value in fields
        if field == name
    ]


def _parameters(fields: list[tuple[str, Any]]) -> dict[str, str]:
    return {one["key"]: dict(one["value"])["string_value"] for one in all_of(fields, "parameters")}


def _fields(words: list[str]) -> tuple[list[tuple[str, Any]], list[str]]:
    fields: list[tuple[str, Any]] = []
    while words and words[0] != "}":
        name, mark, words = words[0], words[1], words[2:]
        if mark == "{":
            value, words = _fields(words)
            words = words[1:]
            fields.append((name, value))
        elif words[0] == "[":
            end = words.index("]")
            fields.append((name, [_scalar(word) for word in words[1:end] if word != ","]))
            words = words[end + 1 :]
        else:
            fields.append((name, _scalar(words[0])))
            words = words[1:]
    return fields, words


def _scalar(word: str) -> Any:
    return int(word) if re.fullmatch(r"-?\d+", word) else word.strip('"')


def main() -> None:
    """Decode one file with the program of a repository, alone: REPOSITORY FILE OUT."""
    repository, file, out = map(Path, sys.argv[1:])
    sys.modules["triton_python_backend_utils"] = backend_utils()
    program = opened(repository, "preprocess")
    (answer,) = program.execute([Request(["images"], encoded=np.array([file.read_bytes()], dtype=object))])
    np.save(out, answer.outputs["images"])
    foreign = {"torch", "pydantic", "cv2"} & set(sys.modules)
    assert not foreign, foreign
    assert Path(sys.modules["foveal"].__file__ or "").is_relative_to(repository)


if __name__ == "__main__":
    main()
