"""From a compiled function to ONNX bytes that a device may run: standard operators, no weights, no external data, no source paths."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path

import torch

from heron_common.errors import Interrupted, ProgramError
from heron_common.protocol.program_check import check_program
from heron_common.specification.model_spec import MAX_PROGRAM_BYTES, ProgramKind
from heron_common.terminal.log_setup import TOLD
from heron_server.models.recomputation import recomputing
from heron_server.models.split_model import SplitModel
from heron_server.programs.cache_directory import CacheDirectory, library_version
from heron_server.programs.compile import CompiledFunction, compile_function
from heron_server.programs.gradient import traced, with_backward_rules
from heron_server.programs.recurrent_layers import reshape_before_recurrent_layers
from heron_server.programs.signature import signature

log = logging.getLogger(__name__)

EXPORT_VERSION = 5
"""Raised when the exporter's own output changes, or what devices refuse, so that cached programs of older exporters are not used."""


class ProgramCache:
    """Exports programs once per (model, kind, micro-batch, versions) and keeps them in a directory.

    Those of a user's own model are kept by what they compute: no name or source says what code leads to, and a stale program would be used for ever.
    """

    def __init__(self, directory: Path, stop: threading.Event | None = None) -> None:
        """Once `stop` is set no further program is compiled."""
        self._kept = CacheDirectory(directory)
        self._stop = stop

    def program(self, model: SplitModel, kind: ProgramKind, *, micro_batch: int, directions: int = 1) -> bytes:
        """Return the program's bytes, from the cache if they are there.

        Raises:
            ProgramError: the model uses an operation that cannot be exported.
            Interrupted: the process was asked to stop.

        """
        if self._stop is not None and self._stop.is_set():
            raise Interrupted("asked to stop")
        function = compile_function(model, kind, micro_batch=micro_batch, directions=directions) if model.code_digest else None
        computes = signature(function) if function is not None else ""
        if function is not None and computes is None:
            return export(function)
        versions = {name: library_version(name) for name in ("torch", "onnx", "onnxscript")}
        parts = [EXPORT_VERSION, model.name, kind.value, micro_batch, directions, versions, *([computes] if computes else [])]
        key = json.dumps(parts, sort_keys=True)
        name = f"{hashlib.sha256(key.encode()).hexdigest()}.program"
        program = self._kept.read(name)
        if program is None:
            log.info(
                "compiling program",
                extra={
                    "kind": kind.value,
                    "micro_batch": micro_batch,
                    "directions": directions,
                    TOLD: f"compiling the {kind.value} program",
                },
            )
            program = export(function or compile_function(model, kind, micro_batch=micro_batch, directions=directions))
            self._kept.keep(name, program)
        return program


def export(function: CompiledFunction) -> bytes:
    """Return the function as a serialised ONNX model.

    Raises:
        ProgramError: it cannot be exported, or the result holds weights, external data or non-standard operators.

    """
    import onnx

    function.module.eval()
    # They warn of what is absent and of constants that they do not fold, which is no news to anybody.
    for name in ("torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                _written_out(function),
                function.arguments,
                dynamo=True,
                verbose=False,
                input_names=list(function.input_names),
                output_names=list(function.output_names),
            )
    except ProgramError:
        raise
    except Exception as exc:
        cause: BaseException = exc
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = f"{type(cause).__name__}: {str(cause).strip().splitlines()[0] if str(cause).strip() else 'no message'}"
        raise ProgramError(f"the {function.kind.value} program cannot be exported ({reason}): use a model of standard operations") from exc
    if exported is None:
        raise ProgramError(f"the {function.kind.value} program cannot be exported: torch returned nothing")
    proto = exported.model_proto
    _strip(proto)
    reshape_before_recurrent_layers(proto)
    _check(proto, function)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except onnx.checker.ValidationError as exc:
        raise ProgramError(f"the exported {function.kind.value} program is not valid ONNX ({exc}): report this") from exc
    data: bytes = proto.SerializeToString(deterministic=True)
    if len(data) > MAX_PROGRAM_BYTES:
        raise ProgramError(f"a program may have {MAX_PROGRAM_BYTES} bytes, but this one has {len(data)}: it seems to hold weights")
    # What devices refuse is not published.
    check_program(data)
    return data


def _written_out(function: CompiledFunction) -> torch.nn.Module:
    if function.is_rewritten:
        # The function itself keeps what its backward pass needs: what runs blocks again is compared with what does not.
        with recomputing(*function.parts) if function.differentiates else nullcontext():
            return with_backward_rules(function.module, function.arguments)
    return traced(function.module, function.arguments) if function.directions > 1 else function.module


def _strip(proto: object) -> None:
    """Remove stack traces and notes: a program that goes to devices carries no paths of the machine it was made on."""
    del proto.metadata_props[:]  # type: ignore[attr-defined]
    graph = proto.graph  # type: ignore[attr-defined]
    graph.doc_string = ""
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


def _check(proto: object, function: CompiledFunction) -> None:
    names = tuple(value.name for value in proto.graph.input)  # type: ignore[attr-defined]
    if names != function.input_names:
        raise ProgramError(f"expected the inputs {function.input_names}, the exported graph has {names}: every weight must be used")
