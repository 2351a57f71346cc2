"""Frozen weights on the device: one file, mapped read-only, that programs read in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from heron_common.errors import ProgramError
from heron_common.numerics.base_layout import base_layout
from heron_common.numerics.tensors import NUMPY_DTYPES, DType, TensorSpec

_ONNX_BFLOAT16 = 16
"""TensorProto.BFLOAT16; numpy has no such type, and the device has no onnx."""


class MappedBase:
    """Program inputs over the mapped file, by name; the kernel may drop its pages at any time and read them again."""

    def __init__(self, path: Path | None, specs: tuple[TensorSpec, ...]) -> None:
        """Map the file; without frozen tensors there is none.

        Raises:
            ProgramError: the file does not have the size that the tensors take.

        """
        layout = base_layout(specs)
        self.values: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._kept: list[npt.NDArray[Any]] = []
        if path is None:
            if specs:
                raise ProgramError("the model has frozen tensors but the server names no blob that holds them: restart the server")
            return
        if path.stat().st_size != layout.total_bytes:
            raise ProgramError(
                f"the frozen weights take {layout.total_bytes} bytes, but {path} has {path.stat().st_size}: delete the file and start again"
            )
        # Copy on write: ONNX Runtime asks for writable memory and never writes to an input.
        whole = np.memmap(path, np.uint8, "c")
        for region in layout.regions:
            piece = whole[region.offset : region.offset + region.size_bytes]
            array = piece.view(NUMPY_DTYPES[region.dtype]).reshape(region.shape).view(np.ndarray)
            # OrtValue does not keep the array alive that it aliases.
            self._kept.append(array)
            self.shapes[region.name] = region.shape
            if region.dtype is DType.BFLOAT16:
                self.values[region.name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_BFLOAT16)
            else:
                self.values[region.name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
