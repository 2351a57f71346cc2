"""What counting and comparing a model found, kept from one start to the next by all that it depends on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import platform
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from heron_common.algorithm.plan import Objective, Plan
from heron_common.numerics.tensors import Float64Array
from heron_server.models.source_digest import fingerprint
from heron_server.models.split_model import SplitModel
from heron_server.programs.cache_directory import CacheDirectory, library_version
from heron_server.programs.cost import ClientCost, client_cost
from heron_server.programs.difference_gate import difference_error

T = TypeVar("T")

FIELDS_WITHOUT_EFFECT = (
    "preset",
    "local_steps",
    "upload_interval",
    "optimiser",
    "learning_rate",
    "clip_factor",
    "num_directions",
    "wire_dtype",
    "update_encoding",
    "backward_equivalents",
    "momentum",
    "weight_decay",
)
"""Of a plan: what a finite difference does not depend on, so that another learning rate does not cost a minute at the start of a large model."""

_LIBRARIES = ("torch", "numpy", "onnxruntime", "transformers", "peft")

_PACKAGES = ("heron_common", "heron_server")
"""All of their code counts: a list of what measures would be wrong one day."""


class Measurements:
    """Stands in for `client_cost` and `difference_error`: the same arguments, the same results, from the cache where they are there.

    Of a model of the user's own only what its program says in full is kept, for no name or source tells what code leads to.
    """

    def __init__(self, directory: Path) -> None:
        self._kept = CacheDirectory(directory)
        self._digests: dict[tuple[tuple[int, int], ...], str] = {}
        self._models: list[SplitModel] = []

    def client_cost(self, model: SplitModel, with_head: bool) -> ClientCost:
        """Return what `client_cost` counts."""
        if model.code_digest:
            return client_cost(model, with_head)
        depends = {"of": "client_cost", "with_head": with_head, **self._model(model, with_back=False)}
        return self._measured(depends, lambda: client_cost(model, with_head), written=dataclasses.asdict, believed=_cost_of)

    def difference_error(self, model: SplitModel, plan: Plan, program: bytes, scales: Float64Array, seed: int) -> float:
        """Return what `difference_error` compares."""

        def measure() -> float:
            return difference_error(model, plan, program=program, scales=scales, seed=seed, count=self.client_cost)

        with_back = plan.objective is not Objective.AUXILIARY
        if model.code_digest and with_back:
            return measure()
        depends = {
            "of": "difference_error",
            "plan": {name: value for name, value in dataclasses.asdict(plan).items() if name not in FIELDS_WITHOUT_EFFECT},
            "program": hashlib.sha256(program).hexdigest(),
            "scales": hashlib.sha256(scales.tobytes()).hexdigest(),
            "seed": seed,
            **self._model(model, with_back),
        }
        return self._measured(depends, measure, written=float, believed=_error_of)

    def _measured(
        self, depends: dict[str, Any], measure: Callable[[], T], *, written: Callable[[T], Any], believed: Callable[[Any], T | None]
    ) -> T:
        key = hashlib.sha256(json.dumps(depends | _circumstances(), sort_keys=True, default=str).encode()).hexdigest()
        value = self._read(key, believed)
        if value is None:
            value = measure()
            self._kept.keep(f"{key}.measurement", json.dumps({"key": key, "value": written(value)}).encode())
        return value

    def _read(self, key: str, believed: Callable[[Any], T | None]) -> T | None:
        """Return a kept value if it is one that could have been measured, and is that of this key."""
        try:
            document = json.loads(self._kept.read(f"{key}.measurement") or b"")
            return believed(document["value"]) if document["key"] == key else None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None

    def _model(self, model: SplitModel, with_back: bool) -> dict[str, Any]:
        """Return what says which model this is, with its present weights."""
        parts = [model.front, model.auxiliary_head, *([model.back] if with_back else [])]
        probes = model.probes.x.tobytes() if model.probes is not None else b""
        loss = getattr(model.sample_losses, "__qualname__", type(model.sample_losses).__qualname__)
        described = [model.name, model.input_shape, model.num_classes, model.task, model.tokens, model.lengths, model.num_tokens]
        stored = [model.base_storage, model.batch_statistics, model.token_input, loss, hashlib.sha256(probes).hexdigest()]
        return {"model": [*described, *stored], "weights": self._weights(model, parts)}

    def _weights(self, model: SplitModel, parts: list[nn.Module]) -> str:
        """Return the digest of structure and tensors, taken again only once one of these has changed: a language model's take a second."""
        tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
        state = tuple((id(tensor), tensor._version) for tensor in tensors)
        if state not in self._digests:
            # As long as the model is held, no other tensor has the identity of one of its own.
            self._models.append(model)
            self._digests[state] = _digest(parts, {id(tensor): tensor for tensor in tensors}.values())
        return self._digests[state]


def _digest(parts: list[nn.Module], tensors: Iterable[torch.Tensor]) -> str:
    digest = hashlib.sha256(fingerprint(*parts).encode())
    for tensor in tensors:
        digest.update(f"{list(tensor.shape)} {tensor.dtype} {tensor.requires_grad}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _circumstances() -> dict[str, Any]:
    """Return what else a result may depend on: versions, code, machine and threads, which round in their own ways."""
    return {
        "versions": {name: library_version(name) for name in _LIBRARIES},
        "code": _code(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


@functools.cache
def _code() -> str:
    """Return a digest of all that measures."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        folder = Path(str(import_module(package).__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{path.relative_to(folder)}".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _cost_of(value: Any) -> ClientCost | None:
    names = [field.name for field in dataclasses.fields(ClientCost)]
    if not isinstance(value, dict) or sorted(value) != sorted(names) or not all(type(value[n]) is int and value[n] >= 0 for n in names):
        return None
    return ClientCost(**value)


def _error_of(value: Any) -> float | None:
    return value if isinstance(value, float) and math.isfinite(value) and value >= 0 else None
