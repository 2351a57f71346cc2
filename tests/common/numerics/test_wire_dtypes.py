"""Wire dtypes: layouts and rounding against naive twins, error bounds, unbiased int8, bytes independent of micro-batches, non-finite rows refused."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.numerics.directions import PerturbationSeed
from heron_common.numerics.tensors import Float32Array
from heron_common.numerics.wire_dtypes import MAX_SCALE, WireDtype, check_row_values, decode_rows, encode_rows, row_bytes
from heron_common.protocol.chunks import split_rows
from tests.common.numerics.philox import stream_word

SEED = PerturbationSeed(0x0123456789ABCDEF, 0xFEDCBA9876543210)
ALL = list(WireDtype)
ROUNDED = [WireDtype.FLOAT16, WireDtype.BFLOAT16, WireDtype.INT8]
LARGEST = float(np.finfo(np.float32).max)
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)


def some_rows(shape: tuple[int, ...], seed: int = 0) -> Float32Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def there_and_back(rows: Float32Array, dtype: WireDtype, noise_seed: PerturbationSeed | None = SEED) -> Float32Array:
    return decode_rows(encode_rows(rows, dtype, noise_seed=noise_seed, first_row=0), dtype, rows.shape)


def scales_of(data: memoryview, elements: int) -> Float32Array:
    return np.array([struct.unpack_from("<f", data, start)[0] for start in range(0, len(data), 4 + elements)], np.float32)


def naive_bfloat16(value: float) -> int:
    """Return the bits nearest to a finite `value`, the even ones of two, by looking at both neighbours; saturates."""
    (bits,) = struct.unpack("<I", struct.pack("<f", abs(value)))
    below, above = bits >> 16, (bits >> 16) + 1
    if above > 0x7F7F:
        nearest = 0x7F7F
    else:
        low, high = (struct.unpack("<f", struct.pack("<I", b << 16))[0] for b in (below, above))
        to_low, to_high = abs(value) - low, high - abs(value)
        nearest = below if to_low < to_high or (to_low == to_high and below % 2 == 0) else above
    return nearest | (0x8000 if math.copysign(1, value) < 0 else 0)


def awkward_floats() -> Float32Array:
    """Return random bit patterns, ties between two bfloat16, and both ends of the range; all finite."""
    patterns = np.random.default_rng(3).integers(0, 2**32, 3000, np.uint32)
    ties = (patterns[:500] & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    edges = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0x18000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFFFF, 0x80000000, 0xFF7FFFFF], np.uint32)
    values: Float32Array = np.concatenate([patterns, ties, edges]).view(np.float32)
    return values[np.isfinite(values)]


@pytest.mark.parametrize(("dtype", "expected"), [("float32", 28), ("float16", 14), ("bfloat16", 14), ("int8", 11)])
def test_sizes_are_elements_times_width_and_a_scale_for_int8(dtype: str, expected: int) -> None:
    assert row_bytes(WireDtype(dtype), 7) == expected
    assert len(encode_rows(some_rows((3, 7)), WireDtype(dtype), noise_seed=SEED, first_row=0)) == 3 * expected
    assert len(encode_rows(some_rows((0, 7)), WireDtype(dtype), noise_seed=SEED, first_row=0)) == 0
    assert decode_rows(b"", WireDtype(dtype), (0, 7)).shape == (0, 7)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("shape", [(4,), (1, 1), (3, 5), (2, 3, 4, 5)])
def test_shape_and_dtype_come_back(dtype: WireDtype, shape: tuple[int, ...]) -> None:
    back = there_and_back(some_rows(shape), dtype)
    assert back.shape == shape
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, some_rows(shape), atol=0.04)


def test_bytes_on_the_wire_are_little_endian() -> None:
    rows = np.array([[1.0, -127.0]], np.float32)
    for dtype, expected in (("float32", "0000803f0000fec2"), ("float16", "003cf0d7"), ("bfloat16", "803ffec2"), ("int8", "0000803f0181")):
        assert bytes(encode_rows(rows, WireDtype(dtype), noise_seed=SEED, first_row=0)).hex() == expected
        assert bytes(encode_rows(rows.astype(">f4"), WireDtype(dtype), noise_seed=None, first_row=0)).hex() == expected


def test_float32_is_the_arrays_own_memory_both_ways() -> None:
    rows = some_rows((2, 3))
    view = encode_rows(rows, WireDtype.FLOAT32, noise_seed=None, first_row=0)
    back = decode_rows(view, WireDtype.FLOAT32, (2, 3))
    rows[1, 2] = 42.0
    assert np.frombuffer(view, np.float32)[5] == back[1, 2] == 42.0
    assert bytes(view) == rows.tobytes()


@pytest.mark.parametrize("dtype", ROUNDED)
def test_the_input_is_left_alone_and_may_be_strided_or_read_only(dtype: WireDtype) -> None:
    rows = some_rows((6, 8))
    rows.flags.writeable = False
    before = rows.copy()
    encode_rows(rows, dtype, noise_seed=SEED, first_row=0)
    np.testing.assert_array_equal(rows, before)
    strided = np.asfortranarray(rows)
    assert bytes(encode_rows(strided, dtype, noise_seed=SEED, first_row=0)) == bytes(encode_rows(rows, dtype, noise_seed=SEED, first_row=0))


@pytest.mark.invariant(22)
def test_float16_is_within_half_a_unit_and_exact_twice() -> None:
    rows = np.concatenate([some_rows((50, 40)), 1e-6 * some_rows((50, 40)), 1e4 * some_rows((50, 40))]).astype(np.float32)
    back = there_and_back(rows, WireDtype.FLOAT16)
    assert np.all(np.abs(back - rows) <= np.maximum(np.abs(rows) * 2.0**-11, 2.0**-25))
    np.testing.assert_array_equal(there_and_back(back, WireDtype.FLOAT16), back)


def test_float16_rounds_ties_to_even_as_struct_does() -> None:
    values = np.array([1 + 2**-11, 1 + 3 * 2**-11, 2049.0, 2051.0, 2**-25, 3 * 2**-25, 65519.0], np.float32)
    data = encode_rows(values[np.newaxis], WireDtype.FLOAT16, noise_seed=None, first_row=0)
    assert bytes(data) == struct.pack("<7e", *values[:6], 65504.0)


@pytest.mark.invariant(22)
def test_bfloat16_is_the_naive_twin_and_within_half_a_unit() -> None:
    values = awkward_floats()
    bits = np.frombuffer(encode_rows(values[np.newaxis], WireDtype.BFLOAT16, noise_seed=None, first_row=0), "<u2")
    assert bits.tolist() == [naive_bfloat16(float(v)) for v in values]
    usual = some_rows((50, 40))
    assert np.all(np.abs(there_and_back(usual, WireDtype.BFLOAT16) - usual) <= np.abs(usual) * 2.0**-8)


@pytest.mark.parametrize(
    ("dtype", "limit"), [(WireDtype.FLOAT16, 65504.0), (WireDtype.BFLOAT16, 255 * 2.0**120), (WireDtype.INT8, 127 * float(MAX_SCALE))]
)
def test_finite_values_beyond_the_range_become_the_largest_and_stay_finite(dtype: WireDtype, limit: float) -> None:
    rows = np.array([[LARGEST, -LARGEST, 0.0]], np.float32)
    for seed in (SEED, None):
        np.testing.assert_array_equal(there_and_back(rows, dtype, seed), np.array([[limit, -limit, 0.0]], np.float32))
        assert check_row_values(encode_rows(rows, dtype, noise_seed=seed, first_row=0), dtype, elements_per_row=3, offset_in_tensor=0)


@pytest.mark.invariant(22)
@pytest.mark.parametrize("seed", [SEED, None])
@pytest.mark.parametrize("magnitude", [1.0, 1e-3, 1e30, 1e-37, 1e-42, 3e38])
def test_int8_is_within_a_scale_and_to_nearest_within_half(magnitude: float, seed: PerturbationSeed | None) -> None:
    rows = np.clip(some_rows((40, 33)).astype(np.float64) * magnitude, -LARGEST, LARGEST).astype(np.float32)
    data = encode_rows(rows, WireDtype.INT8, noise_seed=seed, first_row=0)
    scales = scales_of(data, 33).astype(np.float64)[:, np.newaxis]
    peaks = np.abs(rows).max(axis=1, keepdims=True).astype(np.float64)
    assert np.all(scales <= peaks / 127 * (1 + 2**-22) + SMALLEST)
    error = np.abs(decode_rows(data, WireDtype.INT8, rows.shape).astype(np.float64) - rows)
    # 2^-16 |row| / 127: the quotient, the scale and the product are each rounded to float32. Beyond 127 MAX_SCALE values saturate, by less than a scale.
    share = 1.0 if seed or magnitude == 3e38 else 0.5
    assert np.all(error <= share * scales + 2.0**-16 * scales)


def test_int8_whole_multiples_of_the_scale_are_exact() -> None:
    rows = np.concatenate([np.arange(-127, 128), np.zeros(1)]).astype(np.float32)[np.newaxis] * np.float32(0.25)
    for index in range(200):
        data = encode_rows(rows, WireDtype.INT8, noise_seed=SEED, first_row=index)
        np.testing.assert_array_equal(decode_rows(data, WireDtype.INT8, rows.shape), rows)


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("seed", [SEED, None])
def test_rows_of_zeros_stay_zero_beside_others(dtype: WireDtype, seed: PerturbationSeed | None) -> None:
    rows = np.zeros((3, 5), np.float32)
    rows[1] = some_rows((5,))
    back = there_and_back(rows, dtype, seed)
    assert not back[[0, 2]].any()
    assert back[1].any()
    assert check_row_values(encode_rows(rows, dtype, noise_seed=seed, first_row=0), dtype, elements_per_row=5, offset_in_tensor=0)
    if dtype is WireDtype.INT8:
        assert scales_of(encode_rows(rows, dtype, noise_seed=seed, first_row=0), 5)[[0, 2]].tolist() == [0.0, 0.0]


def test_int8_noise_is_the_naive_philox_stream_of_the_rows_index() -> None:
    rows, first = some_rows((3, 11)), 2**33 + 5
    data = encode_rows(rows, WireDtype.INT8, noise_seed=SEED, first_row=first)
    scales = scales_of(data, 11)
    for i, row in enumerate(rows):
        words = [stream_word(SEED, first + i, w) for w in range(3)]
        pieces = [words[j // 4] >> 16 * (j % 4) & 0xFFFF for j in range(11)]
        expected = [math.floor(float(x / scales[i]) + (piece + 0.5) / 65536) for x, piece in zip(row, pieces, strict=True)]
        assert np.frombuffer(data[i * 15 + 4 : i * 15 + 15], np.int8).tolist() == expected


def test_int8_rounds_up_exactly_from_where_the_middle_of_the_noises_interval_reaches_the_next_number() -> None:
    pieces = [stream_word(SEED, 0, j // 4) >> 16 * (j % 4) & 0xFFFF for j in range(40)]
    thresholds = [1 - (piece + 0.5) / 65536 for piece in pieces[1:]]
    for below, expected in ((0.0, 1.0), (2.0**-17, 0.0)):
        rows = np.array([[127.0, *(t - below for t in thresholds)]], np.float32)
        assert there_and_back(rows, WireDtype.INT8)[0, 1:].tolist() == [expected] * 39


def test_golden_bytes_of_int8_never_change() -> None:
    rows = np.array([[1.0, 0.3, -0.3, 1e-3, -1e-3]], np.float32)
    assert bytes(encode_rows(rows, WireDtype.INT8, noise_seed=PerturbationSeed(1, 2), first_row=0)).hex() == "0502013c7f26da0000"


@pytest.mark.invariant(22)
def test_int8_is_unbiased() -> None:
    row = np.concatenate([some_rows((60,)), [0.0, 1e-3, -1e-3, 3.0]]).astype(np.float32)
    trials = 4000
    tries = np.broadcast_to(row, (trials // 4, row.size))
    back = np.concatenate(
        [
            decode_rows(encode_rows(tries, WireDtype.INT8, noise_seed=PerturbationSeed(9, k), first_row=0), WireDtype.INT8, tries.shape)
            for k in range(4)
        ]
    ).astype(np.float64)
    scale = float(np.abs(row).max()) / 127
    share = np.abs(row.astype(np.float64)) / scale % 1
    standard_error = scale * np.sqrt(share * (1 - share) / trials)
    assert np.all(np.abs(back.mean(axis=0) - row) <= 5 * standard_error + 2.0**-16 * scale)
    assert np.all(np.abs(np.rint(row / scale) * scale - row).max() > 20 * standard_error.mean())  # Nearest rounding would fail this.


@pytest.mark.parametrize("dtype", ALL)
def test_the_bytes_do_not_depend_on_micro_batches(dtype: WireDtype) -> None:
    rows = some_rows((24, 3, 7))
    whole = bytes(encode_rows(rows, dtype, noise_seed=SEED, first_row=100))
    for size in (1, 5, 12, 24):
        pieces = [encode_rows(rows[start : start + size], dtype, noise_seed=SEED, first_row=100 + start) for start in range(0, 24, size)]
        assert b"".join(pieces) == whole


def test_seed_and_row_index_change_int8_and_nothing_else() -> None:
    rows = some_rows((2, 50))
    for dtype in ALL:
        others = [
            encode_rows(rows, dtype, noise_seed=SEED, first_row=1),
            encode_rows(rows, dtype, noise_seed=PerturbationSeed(SEED.low, 0), first_row=0),
            encode_rows(rows, dtype, noise_seed=None, first_row=0),
        ]
        same = [bytes(other) == bytes(encode_rows(rows, dtype, noise_seed=SEED, first_row=0)) for other in others]
        assert same == [dtype is not WireDtype.INT8] * 3


@pytest.mark.parametrize("length", [0, 13, 15])
def test_another_length_is_refused_with_both_lengths(length: int) -> None:
    with pytest.raises(RefusedError, match=rf"expected 14 bytes for int8\[2, 3\], got {length}") as refusal:
        decode_rows(bytes(length), WireDtype.INT8, (2, 3))
    assert refusal.value.code is ErrorCode.INVALID_TENSOR


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800000, 0xFF800000])
def test_nan_and_infinity_stay_what_the_receiver_refuses(dtype: WireDtype, bits: int) -> None:
    for row, column in ((0, 0), (1, 4), (2, 2)):
        rows = some_rows((3, 5))
        rows.view(np.uint32)[row, column] = bits
        for seed in (SEED, None):
            data = encode_rows(rows, dtype, noise_seed=seed, first_row=0)
            assert not check_row_values(data, dtype, elements_per_row=5, offset_in_tensor=0)
            back = decode_rows(data, dtype, (3, 5))
            assert not np.isfinite(back[row, column])
            assert np.isfinite(np.delete(back, row, axis=0)).all()
            if dtype is not WireDtype.INT8:
                assert np.isnan(back[row, column]) == np.isnan(rows[row, column])


@pytest.mark.parametrize("dtype", ALL)
@pytest.mark.parametrize("elements", [1, 5, 12, 37])
def test_only_the_piece_that_holds_the_bad_value_is_refused_however_rows_are_split(dtype: WireDtype, elements: int) -> None:
    rows = some_rows((6, elements))
    good = encode_rows(rows.copy(), dtype, noise_seed=SEED, first_row=0)
    rows[3, elements // 2] = math.nan
    bad = encode_rows(rows, dtype, noise_seed=SEED, first_row=0)
    size = row_bytes(dtype, elements)
    for max_bytes in (8, 16, 40, 2 * size, 10_000):
        offset = 0
        refused = []
        for good_piece, bad_piece in zip(split_rows(good, size, max_bytes), split_rows(bad, size, max_bytes), strict=True):
            assert check_row_values(good_piece, dtype, elements_per_row=elements, offset_in_tensor=offset)
            if not check_row_values(bad_piece, dtype, elements_per_row=elements, offset_in_tensor=offset):
                refused.append(offset)
            offset += len(bad_piece)
        at = 3 * size + (3 if dtype is WireDtype.INT8 else elements // 2 * (size // elements))
        step = max_bytes // size * size if size <= max_bytes else max_bytes // 8 * 8
        assert refused == [at // step * step]


def test_a_scale_that_is_cut_by_the_border_is_judged_all_the_same() -> None:
    rows = some_rows((2, 6))
    good = bytes(encode_rows(rows, WireDtype.INT8, noise_seed=SEED, first_row=0))
    for bad_scale in (math.nan, math.inf, -1.0, float(np.nextafter(MAX_SCALE, np.float32(np.inf)))):
        bad = good[:10] + struct.pack("<f", bad_scale) + good[14:]
        for cut in range(len(good) + 1):
            assert all(
                check_row_values(d, WireDtype.INT8, elements_per_row=6, offset_in_tensor=o) for d, o in ((good[:cut], 0), (good[cut:], cut))
            )
            assert not all(
                check_row_values(d, WireDtype.INT8, elements_per_row=6, offset_in_tensor=o) for d, o in ((bad[:cut], 0), (bad[cut:], cut))
            )


def test_every_accepted_int8_row_decodes_to_finite_numbers() -> None:
    top = [
        b
        for b in range(256)
        if check_row_values(bytes([255, 255, 255, b]) + bytes([0x80, 0x7F]), WireDtype.INT8, elements_per_row=2, offset_in_tensor=0)
    ]
    assert top == list(range(0x7C))
    for last in top:
        assert np.isfinite(decode_rows(bytes([255, 255, 255, last, 0x80, 0x7F]), WireDtype.INT8, (1, 2))).all()


@pytest.mark.parametrize("dtype", [WireDtype.FLOAT32, WireDtype.FLOAT16, WireDtype.BFLOAT16])
def test_a_cut_element_is_not_called_finite(dtype: WireDtype) -> None:
    data = bytes(encode_rows(some_rows((1, 4)), dtype, noise_seed=None, first_row=0))
    assert not check_row_values(data[:-1], dtype, elements_per_row=4, offset_in_tensor=0)
    assert not check_row_values(data, dtype, elements_per_row=4, offset_in_tensor=1)
    assert check_row_values(b"", dtype, elements_per_row=4, offset_in_tensor=0)
