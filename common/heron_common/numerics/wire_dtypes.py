"""How activations and cut gradients travel: float32, float16, bfloat16, or int8 with a scale per row.

Little-endian, row after row. Of the three floats a row is its n elements; of INT8 it is a float32 scale s followed by n int8 values q, and stands for s q.
A tensor with NaN or infinity stays recognisable in every dtype, so that the receiver refuses it instead of training on something plausible.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.numerics.directions import PerturbationSeed
from heron_common.numerics.tensors import Float32Array, raw_bytes

INT8_LIMIT = 127
"""Largest |q| that is sent; -128 has no positive twin and would bias."""

MAX_SCALE = np.float32(np.finfo(np.float32).max / 128)
"""Largest scale: times any int8 it is finite. It is 0x7BFFFFFF as bits, so a scale is in [0, MAX_SCALE] exactly if its last byte is at most 0x7B."""

_SCALE_BYTES = 4
_SCALE_LAST_BYTE_MAX = 0x7B


class WireDtype(StrEnum):
    """What an activation or a cut gradient is rounded to for the wire; arithmetic on both ends is float32."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


_ELEMENT_BYTES = {WireDtype.FLOAT32: 4, WireDtype.FLOAT16: 2, WireDtype.BFLOAT16: 2, WireDtype.INT8: 1}


def row_bytes(dtype: WireDtype, elements_per_row: int) -> int:
    """Return the bytes of one encoded row."""
    return _ELEMENT_BYTES[dtype] * elements_per_row + (_SCALE_BYTES if dtype is WireDtype.INT8 else 0)


def encode_rows(rows: Float32Array, dtype: WireDtype, *, noise_seed: PerturbationSeed | None, first_row: int) -> memoryview:
    """Return the bytes of `rows`; FLOAT32 aliases the array, the others are new.

    FLOAT16 and BFLOAT16 round to nearest, ties to even, and finite values beyond the range become the largest finite one.
    INT8: s = max|row| / 127, rounded up so that no |x| / s exceeds 127 (above 127 MAX_SCALE values saturate); q = floor(x / s + noise), so E[s q] = x to within 2^-17 s.
    The noise of row r is stream (r, 0, 0) of `noise_seed` (see heron_common.numerics.directions), 16 bits per element, least significant first: (k + 1/2) / 2^16.
    Hence a row's bytes depend on its values and its index only, not on the micro-batch that it came with.

    Args:
        rows: [m, ...], float32.
        dtype: what to send.
        noise_seed: key of the rounding noise, read by INT8 only; None rounds to nearest, which is biased.
        first_row: index of rows[0] in the whole tensor.

    """
    rows = np.ascontiguousarray(rows, "<f4")
    # Numbers out of range are dealt with below; a signalling NaN would warn too.
    with np.errstate(over="ignore", invalid="ignore"):
        match dtype:
            case WireDtype.FLOAT32:
                return raw_bytes(rows)
            case WireDtype.FLOAT16:
                return raw_bytes(_to_float16(rows))
            case WireDtype.BFLOAT16:
                return raw_bytes(_to_bfloat16(rows))
            case WireDtype.INT8:
                flat = rows.reshape(len(rows), math.prod(rows.shape[1:]))
                return raw_bytes(_to_int8(flat, noise_seed, first_row))


def decode_rows(data: bytes | bytearray | memoryview, dtype: WireDtype, shape: tuple[int, ...]) -> Float32Array:
    """Return the [rows, ...] float32 tensor that `data` holds; of FLOAT32 a view, which is read-only where `data` is.

    Raises:
        RefusedError: INVALID_TENSOR if the length is not exactly that of `shape`.

    """
    elements = math.prod(shape[1:])
    expected = shape[0] * row_bytes(dtype, elements)
    if len(data) != expected:
        raise RefusedError(ErrorCode.INVALID_TENSOR, f"expected {expected} bytes for {dtype.value}{list(shape)}, got {len(data)}")
    values: Float32Array
    # Whoever checks values has done it before; here NaN and infinity pass through without a warning.
    with np.errstate(invalid="ignore", over="ignore"):
        match dtype:
            case WireDtype.FLOAT32:
                values = np.frombuffer(data, "<f4")
            case WireDtype.FLOAT16:
                values = np.frombuffer(data, "<f2").astype(np.float32)
            case WireDtype.BFLOAT16:
                wide = np.frombuffer(data, "<u2").astype(np.uint32)
                wide <<= 16
                values = wide.view(np.float32)
            case WireDtype.INT8:
                table = np.frombuffer(data, np.uint8).reshape(shape[0], _SCALE_BYTES + elements)
                scales = table[:, :_SCALE_BYTES].copy().view("<f4")
                values = np.multiply(table[:, _SCALE_BYTES:].view(np.int8), scales, dtype=np.float32)
    return values.reshape(shape)


def check_row_values(data: bytes | bytearray | memoryview, dtype: WireDtype, *, elements_per_row: int, offset_in_tensor: int) -> bool:
    """Return whether a piece of an encoded tensor stands for finite numbers only.

    INT8: every scale must lie in [0, MAX_SCALE]. A scale's last byte decides, so a scale cut in two by the pieces' border is judged all the same.
    The floats: the exponent is not all ones; an element must not be cut, and False is returned if one is.

    Args:
        data: consecutive bytes, not necessarily whole rows.
        dtype: how the tensor was encoded.
        elements_per_row: n.
        offset_in_tensor: byte offset of the piece in the encoded tensor.

    """
    if dtype is WireDtype.INT8:
        stride = row_bytes(dtype, elements_per_row)
        last_bytes = np.frombuffer(data, np.uint8)[(_SCALE_BYTES - 1 - offset_in_tensor) % stride :: stride]
        return bool((last_bytes <= _SCALE_LAST_BYTE_MAX).all())
    width = _ELEMENT_BYTES[dtype]
    if len(data) % width or offset_in_tensor % width:
        return False
    if dtype is WireDtype.FLOAT32:
        return bool(np.isfinite(np.frombuffer(data, "<f4")).all())
    exponent = np.uint16(0x7C00 if dtype is WireDtype.FLOAT16 else 0x7F80)
    return not bool(((np.frombuffer(data, "<u2") & exponent) == exponent).any())


def _to_float16(rows: Float32Array) -> npt.NDArray[np.float16]:
    half: npt.NDArray[np.float16] = rows.astype("<f2")
    overflowed = np.isinf(half)
    if overflowed.any():
        overflowed &= np.isfinite(rows)
        half.view("<u2")[overflowed] -= 1  # The bits before infinity's are the largest finite number's.
    return half


def _to_bfloat16(rows: Float32Array) -> npt.NDArray[np.uint16]:
    bits: npt.NDArray[np.uint32] = rows.view("<u4")
    # A bfloat16 is a float32's upper half. Half a unit less one, plus the last bit kept, carries into it exactly when nearest-even rounds up.
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    upper: npt.NDArray[np.uint16] = rounded.astype("<u2")
    # From here on the carry would make infinity of a finite number, or a number of a NaN: cut off instead, and a NaN keeps a mantissa bit.
    special = (bits & 0x7FFFFFFF) >= 0x7F7F8000
    if special.any():
        few = bits[special]
        upper[special] = (few >> 16) | np.where((few & 0x7FFFFFFF) > 0x7F800000, np.uint32(0x40), np.uint32(0))
    return upper


def _to_int8(rows: Float32Array, noise_seed: PerturbationSeed | None, first_row: int) -> npt.NDArray[np.uint8]:
    scales = _scales(rows)
    usable = np.isfinite(scales)
    # A row of zeros is divided by 1, and so is one that is not finite: its scale says that it is refused, its values do not matter.
    quotients: Float32Array = np.divide(rows, np.where(usable & (scales > 0), scales, np.float32(1))[:, np.newaxis], dtype=np.float32)
    if not usable.all():
        quotients[~usable] = 0
    if noise_seed is None:
        np.rint(quotients, out=quotients)
    else:
        _add_noise(quotients, noise_seed, first_row)
        np.floor(quotients, out=quotients)
    np.clip(quotients, -INT8_LIMIT, INT8_LIMIT, out=quotients)
    encoded = np.empty((len(rows), row_bytes(WireDtype.INT8, rows.shape[1])), np.uint8)
    encoded[:, :_SCALE_BYTES] = scales.astype("<f4", copy=False).view(np.uint8).reshape(len(rows), _SCALE_BYTES)
    encoded[:, _SCALE_BYTES:].view(np.int8)[:] = quotients.astype(np.int8)
    return encoded


def _scales(rows: Float32Array) -> Float32Array:
    peaks = np.maximum(np.abs(rows.max(axis=1)), np.abs(rows.min(axis=1))).astype(np.float64)  # NaN and infinity come through.
    exact = peaks / INT8_LIMIT
    scales: Float32Array = exact.astype(np.float32)
    scales = np.where(scales < exact, np.nextafter(scales, np.float32(np.inf)), scales)
    return np.where(np.isfinite(peaks), np.minimum(scales, MAX_SCALE), scales)


def _add_noise(quotients: Float32Array, seed: PerturbationSeed, first_row: int) -> None:
    elements = quotients.shape[1]
    philox = np.random.Philox(key=np.array(seed, np.uint64))
    state: Any = philox.state  # Moving one generator is ten times cheaper than making one for every row.
    noise = np.empty(elements, np.float32)
    for index, row in enumerate(quotients):
        state["state"]["counter"][:] = (0, first_row + index, 0, 0)
        philox.state = state
        words = philox.random_raw((elements + 3) // 4).astype("<u8", copy=False)
        # Middles of the 2^16 intervals: whole numbers stay what they are, and 127 + 1 - 2^-17 is a float32, so that no sum is rounded up to 128.
        noise[:] = words.view("<u2")[:elements]
        noise += np.float32(0.5)
        noise *= np.float32(2.0**-16)
        row += noise
