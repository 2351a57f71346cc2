"""Programs over a batch, micro-batch by micro-batch: losses come back, activations leave for the server, gradients add up. Holds no whole batch of activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_client.network.upload import Upload
from heron_client.training.parameters import LocalParameters
from heron_client.training.round_meter import RoundMeter
from heron_client.training.runtime import Program
from heron_common.algorithm.plan import Plan
from heron_common.numerics.directions import Directions, PerturbationSeed
from heron_common.numerics.tensors import Float32Array, Float64Array
from heron_common.numerics.wire_dtypes import decode_rows, encode_rows, row_bytes
from heron_common.specification.model_spec import ProgramKind

ACTIVATIONS, LABELS, MASK = 0, 1, 2
"""Indices of the tensors of an upload; sequences of tokens alone have a mask."""


@dataclass(frozen=True)
class Batch:
    """Samples of one local step: x [batch_size, *input_shape], labels y [batch_size, ...]; `length` of its texts, 0 where a run has but one shape."""

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    length: int = 0


@dataclass
class UploadStream:
    """Where activations go, in the wire dtype; rows are numbered over base and probes, so that their rounding does not depend on micro-batches."""

    upload: Upload
    noise_seed: PerturbationSeed
    next_row: int = 0


class CutGradient:
    """lambda of one step as it came, [batch_size, *cut] in the wire dtype; decoded a micro-batch at a time."""

    def __init__(self, data: bytes | bytearray, plan: Plan, cut_shape: tuple[int, ...]) -> None:
        self._data = memoryview(data)
        self._dtype = plan.wire_dtype
        self._cut_shape = cut_shape
        self._row_bytes = row_bytes(plan.wire_dtype, int(np.prod(cut_shape)))

    def rows(self, part: slice) -> Float32Array:
        """Return the rows of one micro-batch as float32."""
        data = self._data[part.start * self._row_bytes : part.stop * self._row_bytes]
        return decode_rows(data, self._dtype, (part.stop - part.start, *self._cut_shape))


class Passes:
    """Runs the plan's programs from whatever weights stand in the working buffer."""

    def __init__(self, plan: Plan, parameters: LocalParameters, *, scales: Float64Array, meter: RoundMeter) -> None:
        self._plan = plan
        self._parameters = parameters
        self._scales = scales
        self._meter = meter

    def whole(
        self,
        program: Program,
        batch: Batch,
        *,
        stream: UploadStream | None = None,
        gradient: Float32Array | None = None,
        cut_gradient: CutGradient | None = None,
    ) -> Float32Array:
        """Run a program over the whole batch; return [batch_size] losses (or inner products; zeros where the program has neither).

        Args:
            program: which one.
            batch: the samples.
            stream: where activations go, if anywhere.
            gradient: [as many as move by gradients], what the program's gradients are added to, if anything.
            cut_gradient: lambda, for the programs that read it.

        """
        losses = np.zeros(len(batch.x), np.float32)
        self._rows(program, batch, rows=slice(0, len(batch.x)), losses=losses, stream=stream, gradient=gradient, cut_gradient=cut_gradient)
        return losses

    def perturbed(
        self,
        program: Program,
        batch: Batch,
        *,
        directions: Directions,
        first_direction: int,
        sign: float,
        base: Float32Array,
        stream: UploadStream | None = None,
        cut_gradient: CutGradient | None = None,
    ) -> Float32Array:
        """Run every group at base + sign * mu * v with a direction of its own, `first_direction` being the first group's; return [batch_size] losses."""
        losses = np.zeros(len(batch.x), np.float32)
        at_once, size = self._plan.directions_per_run, self._plan.group_size
        working = self._parameters.working[:at_once, : base.size]
        magnitudes = sign * self._plan.smoothing_radius * self._scales
        for group in range(0, self._plan.direction_groups, at_once):
            directions.add_each(first_direction + group, magnitudes, base=base, targets=working)
            self._rows(
                program,
                batch,
                rows=slice(group * size, (group + at_once) * size),
                losses=losses,
                stream=stream,
                gradient=None,
                cut_gradient=cut_gradient,
            )
        return losses

    def _rows(
        self,
        program: Program,
        batch: Batch,
        *,
        rows: slice,
        losses: Float32Array,
        stream: UploadStream | None,
        gradient: Float32Array | None,
        cut_gradient: CutGradient | None,
    ) -> None:
        for start in range(rows.start, rows.stop, self._plan.micro_batch):
            part = slice(start, start + self._plan.micro_batch)
            program.run(batch.x[part], batch.y[part], None if cut_gradient is None else cut_gradient.rows(part))
            if program.kind in (ProgramKind.LOSS, ProgramKind.GRADIENT):
                losses[part] = program.losses
            elif program.kind is ProgramKind.SURROGATE:
                losses[part] = program.inner_products
            if gradient is not None:
                gradient += program.gradients[: gradient.size]
            if stream is not None:
                data = encode_rows(program.activations, self._plan.wire_dtype, noise_seed=stream.noise_seed, first_row=stream.next_row)
                stream.upload.write(ACTIVATIONS, data)
                stream.next_row += len(program.activations)
        if stream is None or not stream.upload.repeats:
            backward = program.kind in (ProgramKind.GRADIENT, ProgramKind.PULLBACK)
            self._meter.add_passes(rows.stop - rows.start, 1 + self._plan.backward_equivalents if backward else 1)
