"""Programs under ONNX Runtime: every weight is an input that aliases a flat buffer, every buffer is allocated once."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from heron_client.parameters import LocalParameters
from heron_common.assignment import MAX_PROGRAM_BYTES, ModelSpec, ProgramKind, ProgramReference
from heron_common.errors import ProgramError
from heron_common.tensors import Float32Array, Int64Array


class Program:
    """One program bound to the client's buffers; `run` fills `activations` and, for a loss program, `losses`."""

    def __init__(
        self,
        reference: ProgramReference,
        data: bytes,
        model: ModelSpec,
        parameters: LocalParameters,
        input_shape: tuple[int, ...],
        threads: int,
    ) -> None:
        """Load the program after checking its digest, its inputs and its outputs.

        Raises:
            ProgramError: wrong digest or size, not loadable, or its inputs are not the model's.

        """
        self.kind = reference.kind
        self.micro_batch = reference.micro_batch
        _check_digest(reference, data)
        self._session = _load(data, threads)
        rows = reference.micro_batch
        self._x: Float32Array = np.zeros((rows, *input_shape), np.float32)
        self._y: Int64Array = np.zeros(rows, np.int64)
        self.activations: Float32Array = np.zeros((rows, *model.cut.shape), np.float32)
        self.losses: Float32Array = np.zeros(rows, np.float32)
        views = parameters.working_views()
        num_front = len(model.client_model)
        inputs: dict[str, npt.NDArray[Any]] = {"x": self._x, **{f"client_model.{i}": views[f"client_model.{i}"] for i in range(num_front)}}
        outputs: dict[str, npt.NDArray[Any]] = {"activations": self.activations}
        if self.kind is ProgramKind.LOSS:
            inputs |= {"y": self._y, **{name: view for name, view in views.items() if name.startswith("auxiliary_head.")}}
            outputs["losses"] = self.losses
        self._check_signature(inputs, outputs)
        self._binding = self._session.io_binding()
        # OrtValue does not keep the numpy array alive that it aliases; these lists do.
        self._kept = [*inputs.values(), *outputs.values()]
        for name, array in inputs.items():
            self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for name, array in outputs.items():
            self._binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))

    def run(self, x: Float32Array, y: Int64Array) -> None:
        """Run on one micro-batch of samples with the weights now in the working buffer; releases the interpreter while it computes."""
        np.copyto(self._x, x)
        np.copyto(self._y, y)
        self._session.run_with_iobinding(self._binding)

    def _check_signature(self, inputs: dict[str, npt.NDArray[Any]], outputs: dict[str, npt.NDArray[Any]]) -> None:
        found_inputs = {i.name: tuple(i.shape) for i in self._session.get_inputs()}
        found_outputs = {o.name: tuple(o.shape) for o in self._session.get_outputs()}
        for what, found, bound in (("input", found_inputs, inputs), ("output", found_outputs, outputs)):
            expected = {name: array.shape for name, array in bound.items()}
            if found != expected:
                different = sorted(set(found.items()) ^ set(expected.items()), key=str)[:2]
                raise ProgramError(
                    f"the {self.kind.value} program's {what}s are not the model's ({different}): server and client disagree, restart the server"
                )


def check_reference(reference: ProgramReference) -> None:
    """Refuse a program by what is said of it, before a byte of it is fetched.

    Raises:
        ProgramError: it is too large, or its digest is not one.

    """
    if reference.blob.size_bytes > MAX_PROGRAM_BYTES:
        raise ProgramError(
            f"a program has at most {MAX_PROGRAM_BYTES} bytes, but one of {reference.blob.size_bytes} is offered: it is refused"
        )
    if re.fullmatch(r"[0-9a-f]{64}", reference.blob.sha256) is None:
        raise ProgramError(f"a digest is 64 hexadecimal digits, not {reference.blob.sha256[:80]!r}: the program is refused")


def self_test() -> None:
    """Check once that buffers are aliased on this device, for everything else rests on it.

    Raises:
        ProgramError: this build of ONNX Runtime copies numpy buffers.

    """
    array = np.zeros(4, np.float32)
    value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
    array[2] = 7.0
    if float(value.numpy()[2]) != 7.0:
        raise ProgramError(
            f"onnxruntime {onnxruntime.__version__} copies numpy buffers instead of aliasing them: install onnxruntime 1.26 or newer"
        )


def _check_digest(reference: ProgramReference, data: bytes) -> None:
    if len(data) > MAX_PROGRAM_BYTES:
        raise ProgramError(f"a program has at most {MAX_PROGRAM_BYTES} bytes, but one of {len(data)} came: it is refused")
    if hashlib.sha256(data).hexdigest() != reference.blob.sha256:
        raise ProgramError(f"the {reference.kind.value} program is not the one that its digest names: it is refused")


def _load(data: bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Arena and memory pattern trade resident memory for allocation speed; a device wants the memory.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as exc:
        raise ProgramError(
            f"onnxruntime {onnxruntime.__version__} cannot load the program ({exc}): update onnxruntime on this device"
        ) from exc
