"""Programs under ONNX Runtime: every weight is an input that aliases a flat buffer, every buffer is allocated once."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from heron_client.training.base import MappedBase
from heron_client.training.parameters import LocalParameters
from heron_client.training.program_runs import ProgramRuns
from heron_common.errors import ProgramError
from heron_common.numerics.layout import FlatLayout
from heron_common.numerics.tensors import NUMPY_DTYPES, Float32Array
from heron_common.protocol.program_check import check_program
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import MAX_PROGRAM_BYTES, WEIGHTS_BY_DIRECTION, ModelSpec, ProgramKind, ProgramReference
from heron_common.specification.text_lengths import of_length

PROGRAM_OUTPUTS: dict[ProgramKind, tuple[str, ...]] = {
    ProgramKind.LOSS: ("activations", "losses"),
    ProgramKind.FRONT: ("activations",),
    ProgramKind.GRADIENT: ("activations", "losses", "gradients"),
    ProgramKind.SURROGATE: ("activations", "inner_products"),
    ProgramKind.PULLBACK: ("gradients",),
}
"""What a program of each kind computes."""

_READS_HEAD = _READS_LABELS = {ProgramKind.LOSS, ProgramKind.GRADIENT}
_READS_CUT_GRADIENT = {ProgramKind.SURROGATE, ProgramKind.PULLBACK}
_MOVES_STATISTICS = {ProgramKind.LOSS, ProgramKind.FRONT, ProgramKind.GRADIENT}
"""Programs of base passes; the others follow one in the same step, and running statistics move once a step."""


class Program:
    """One program bound to the client's buffers; `run` fills those of its outputs that `PROGRAM_OUTPUTS` names for its kind.

    Attributes:
        activations: [micro_batch, *cut].
        losses: [micro_batch].
        inner_products: [micro_batch], <lambda, z>.
        gradients: flat, of the micro-batch's sum, as long as the weights that it is taken for.
        new_statistics: flat, the running statistics after this run, as many as the program moves; empty where the model has none.

    """

    def __init__(
        self,
        reference: ProgramReference,
        data: bytes,
        *,
        model: ModelSpec,
        parameters: LocalParameters,
        specification: DataSpecification,
        threads: int,
        base: MappedBase | None = None,
        arena: bool = True,
        runs: ProgramRuns | None = None,
    ) -> None:
        """Load the program after checking its digest, its inputs and its outputs. With an `arena` it keeps the memory of its temporaries between runs.

        Raises:
            ProgramError: wrong digest or size, more in it than listed operators, not loadable, or its inputs are not the model's.

        """
        self.kind = reference.kind
        self.micro_batch = reference.micro_batch
        self._directions = reference.directions
        _check_digest(reference, data)
        check_program(data)
        self._runs = runs or ProgramRuns()
        with self._runs.timed():
            self._session = _load(data, threads, arena)
        if reference.length not in (model.lengths or (0,)):
            raise ProgramError(
                f"the {self.kind.value} program is for texts of {reference.length} tokens, which is no length of this run: restart the server"
            )
        model = of_length(model, reference.length)
        rows, cut = reference.micro_batch, model.cut.shape
        sample = (reference.length,) if reference.length else specification.input_shape
        self._x: npt.NDArray[Any] = np.zeros((rows, *sample), np.int64 if specification.tokens else np.float32)
        self._y: npt.NDArray[Any] = np.zeros((rows, *model.labels.shape), NUMPY_DTYPES[model.labels.dtype])
        self._cut_gradient: Float32Array = np.zeros((rows, *cut) if self.kind in _READS_CUT_GRADIENT else 0, np.float32)
        self.activations: Float32Array = np.zeros((rows, *cut), np.float32)
        self.losses: Float32Array = np.zeros(rows, np.float32)
        self.inner_products: Float32Array = np.zeros(rows, np.float32)
        layout = parameters.descended_layout if self.kind is ProgramKind.GRADIENT else parameters.front_layout
        has_gradients = "gradients" in PROGRAM_OUTPUTS[self.kind]
        self.gradients: Float32Array = np.zeros(layout.num_parameters if has_gradients else 0, np.float32)
        moves = self.kind in _MOVES_STATISTICS
        statistics = FlatLayout(model.statistics_read(self.kind in _READS_HEAD) if moves else ())
        self.new_statistics: Float32Array = np.zeros(statistics.num_parameters, np.float32)
        self._bind(parameters, base=base or MappedBase(None, ()), gradient_layout=layout if has_gradients else None, statistics=statistics)

    def run(self, x: npt.NDArray[Any], y: npt.NDArray[Any], cut_gradient: Float32Array | None = None) -> None:
        """Run on one micro-batch of samples with the weights now in the working buffer; releases the interpreter while it computes.

        Raises:
            Interrupted, ProgramError: see `ProgramRuns.run`.

        """
        np.copyto(self._x, x)
        np.copyto(self._y, y)
        if cut_gradient is not None:
            np.copyto(self._cut_gradient, cut_gradient)
        self.run_again()

    def run_again(self) -> None:
        """Run on the samples of the run before, zeros at first."""
        self._runs.run(self._session, self._binding, f"the {self.kind.value} program")

    def _bind(self, parameters: LocalParameters, *, base: MappedBase, gradient_layout: FlatLayout | None, statistics: FlatLayout) -> None:
        found = {i.name: tuple(i.shape) for i in self._session.get_inputs()}
        samples: dict[str, npt.NDArray[Any]] = {"x": self._x}
        if self.kind in _READS_LABELS:
            samples["y"] = self._y
        if self.kind in _READS_CUT_GRADIENT:
            samples["cut_gradient"] = self._cut_gradient
        present = statistics.views(parameters.statistics[: statistics.num_parameters])
        samples |= {f"statistics.{i}": view for i, view in enumerate(present)}
        views = parameters.working_views()
        if self.kind not in _READS_HEAD:
            views = {name: view for name, view in views.items() if not name.startswith("auxiliary_head.")}
        # A gradient may not depend on every weight: the bias before a sum does not change it. Such weights are no inputs.
        weights = {name: view for name, view in views.items() if name in found}
        if self._directions > 1:
            weights = {WEIGHTS_BY_DIRECTION: parameters.working}
        outputs: dict[str, npt.NDArray[Any]] = {name: getattr(self, name) for name in PROGRAM_OUTPUTS[self.kind] if name != "gradients"}
        if gradient_layout is not None:
            # The first tensors may be without a gradient.
            names = list(views)[len(views) - len(gradient_layout.specs) :]
            for name, view in zip(names, gradient_layout.views(self.gradients), strict=True):
                outputs[f"gradients.{name}"] = view
        outputs |= {f"new_statistics.{i}": view for i, view in enumerate(statistics.views(self.new_statistics))}
        # Of the frozen tensors a program takes those that it uses.
        frozen = {name: value for name, value in base.values.items() if name in found}
        bound = {name: array.shape for name, array in (samples | weights).items()} | {name: base.shapes[name] for name in frozen}
        self._check_signature("input", found, bound)
        computed = {o.name: tuple(o.shape) for o in self._session.get_outputs()}
        self._check_signature("output", computed, {name: array.shape for name, array in outputs.items()})
        self._binding = self._session.io_binding()
        # OrtValue does not keep the numpy array alive that it aliases; these lists do.
        self._kept = [*samples.values(), *weights.values(), *outputs.values(), base]
        for name, array in (samples | weights).items():
            self._binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for name, value in frozen.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, array in outputs.items():
            self._binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))

    def _check_signature(self, what: str, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> None:
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


def _load(data: bytes, threads: int, arena: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Reuse keeps a buffer for the next output of its size until the last of them, so that a transformer's block holds one of every size at once, three times
    # what lives. Without reuse buffers come and go all the time; the arena keeps them close together, the C heap would not.
    options.enable_mem_reuse = not arena
    options.enable_cpu_mem_arena = arena
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as exc:
        raise ProgramError(
            f"onnxruntime {onnxruntime.__version__} cannot load the program ({exc}): update onnxruntime on this device"
        ) from exc
