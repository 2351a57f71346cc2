"""Tensors on the wire: exact sizes, round trips without copies, and every refusal with a sentence that names what came."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from heron_common.error_catalog import ErrorCode
from heron_common.errors import RefusedError
from heron_common.numerics.tensors import (
    NUMPY_DTYPES,
    DType,
    TensorSpec,
    check_specs,
    decode,
    encode,
    num_parameters,
    raw_bytes,
    total_bytes,
)
from heron_common.protocol.tensor_checks import check_values
from heron_common.specification.data_specification import IGNORED, DataSpecification, Task

SPEC = TensorSpec("activations", DType.FLOAT32, (2, 3))
LABELS = TensorSpec("labels", DType.INT64, (4,))
EXPECTED = DataSpecification("ten classes", (3,), num_classes=10)


def test_every_dtype_has_a_little_endian_numpy_twin_of_its_own_name() -> None:
    assert set(NUMPY_DTYPES) == set(DType)
    for dtype, twin in NUMPY_DTYPES.items():
        # numpy has no bfloat16: its bits travel as 16-bit integers.
        assert twin == np.dtype("u2" if dtype is DType.BFLOAT16 else dtype.value).newbyteorder("<")


@pytest.mark.parametrize(
    ("shape", "elements", "row_elements"), [((), 1, 1), ((5,), 5, 1), ((1, 7), 7, 7), ((4, 2, 3), 24, 6), ((2**40, 2**40), 2**80, 2**40)]
)
def test_sizes_are_exact_products_even_beyond_64_bits(shape: tuple[int, ...], elements: int, row_elements: int) -> None:
    for dtype, width in ((DType.FLOAT32, 4), (DType.INT64, 8)):
        spec = TensorSpec("t", dtype, shape)
        assert (spec.num_elements, spec.size_bytes, spec.row_bytes) == (elements, elements * width, row_elements * width)


@pytest.mark.parametrize(("shape", "size", "row"), [((3, 2, 5), 3 * (4 + 10), 14), ((1, 7), 11, 11), ((4,), 4 * 5, 5)])
def test_every_row_of_an_int8_tensor_carries_its_scale(shape: tuple[int, ...], size: int, row: int) -> None:
    spec = TensorSpec("t", DType.INT8, shape)
    assert (spec.size_bytes, spec.row_bytes) == (size, row)


def test_totals_are_sums_over_tensors() -> None:
    assert (total_bytes((SPEC, LABELS)), num_parameters((SPEC, LABELS))) == (6 * 4 + 4 * 8, 10)
    assert (total_bytes(()), num_parameters(())) == (0, 0)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [dtype for dtype in DType if dtype is not DType.INT8])
def test_encode_then_decode_is_the_identity_bit_for_bit(shape: tuple[int, ...], dtype: DType) -> None:
    spec = TensorSpec("t", dtype, shape)
    array = (np.abs(np.random.default_rng(0).standard_normal(shape)) * 1e4).astype(NUMPY_DTYPES[dtype])
    back = decode(encode(array, spec), spec)
    assert back.dtype == NUMPY_DTYPES[dtype]
    assert back.shape == shape
    assert back.tobytes() == array.tobytes()


def test_bytes_on_the_wire_are_little_endian_whatever_the_array_was() -> None:
    big_endian = np.array([1.0, -2.5], ">f4")
    assert bytes(encode(big_endian, TensorSpec("t", DType.FLOAT32, (2,)))) == bytes.fromhex("0000803f000020c0")
    assert bytes(encode(np.array([258]), TensorSpec("t", DType.INT64, (1,)))) == bytes.fromhex("0201000000000000")


def test_encoding_a_contiguous_array_copies_nothing_and_a_strided_one_keeps_its_values() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    view = encode(array, SPEC)
    array[0, 0] = 42.0
    assert np.frombuffer(view, np.float32)[0] == 42.0
    strided = np.asfortranarray(array)
    assert np.array_equal(decode(encode(strided, SPEC), SPEC), array)


def test_raw_bytes_alias_the_array() -> None:
    array = np.zeros((2, 2), np.int64)
    view = raw_bytes(array)
    assert (view.nbytes, view.ndim, view.itemsize) == (32, 1, 1)
    array[1, 1] = 1
    assert view[24] == 1


def test_encoding_another_shape_is_a_programming_error_that_names_both() -> None:
    with pytest.raises(ValueError, match=r"expected shape \(2, 3\) for 'activations', got \(3, 2\)"):
        encode(np.zeros((3, 2), np.float32), SPEC)


@pytest.mark.parametrize("length", [0, 1, 23, 25, 48])
def test_decoding_another_length_is_refused_with_both_lengths(length: int) -> None:
    with pytest.raises(RefusedError, match=rf"expected 24 bytes for 'activations', got {length}") as refusal:
        decode(bytes(length), SPEC)
    assert refusal.value.code is ErrorCode.INVALID_TENSOR


@pytest.mark.parametrize("data", [bytes(24), bytearray(24), memoryview(bytes(24))])
def test_every_kind_of_buffer_can_be_decoded(data: bytes | bytearray | memoryview) -> None:
    assert np.array_equal(decode(data, SPEC), np.zeros((2, 3), np.float32))


def test_a_header_that_announces_what_is_expected_passes() -> None:
    check_specs((SPEC, LABELS), (SPEC, LABELS))
    check_specs((), ())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": (2, 4)}, ["float32[2, 3]", "float32[2, 4]"]),
        ({"shape": (2, 3, 1)}, ["float32[2, 3]", "float32[2, 3, 1]"]),
        ({"dtype": DType.INT64}, ["float32[2, 3]", "int64[2, 3]"]),
        ({"name": "secrets"}, ["'activations'", "'secrets'"]),
    ],
    ids=["dimension", "rank", "dtype", "name"],
)
def test_a_conflicting_tensor_is_named_in_the_refusal(change: dict[str, object], words: list[str]) -> None:
    with pytest.raises(RefusedError) as refusal:
        check_specs((LABELS, SPEC), (LABELS, dataclasses.replace(SPEC, **change)))  # type: ignore[arg-type]
    assert refusal.value.code is ErrorCode.INVALID_TENSOR
    assert all(word in refusal.value.sentence for word in words)


@pytest.mark.parametrize("announced", [(), (SPEC,), (SPEC, LABELS, LABELS)])
def test_another_number_of_tensors_is_refused_with_the_names_that_were_expected(announced: tuple[TensorSpec, ...]) -> None:
    with pytest.raises(RefusedError, match=rf"expected 2 tensors \(activations, labels\), the header announces {len(announced)}"):
        check_specs((SPEC, LABELS), announced)


def test_a_hostile_name_or_shape_does_not_make_the_refusal_long() -> None:
    hostile = TensorSpec("x" * 100_000, DType.FLOAT32, (1,) * 100_000)
    with pytest.raises(RefusedError) as refusal:
        check_specs((SPEC,), (hostile,))
    assert len(refusal.value.sentence) < 400


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 5])
def test_a_float_that_is_not_finite_is_refused(value: float, place: int) -> None:
    array = np.zeros(6, np.float32)
    array[place] = value
    with pytest.raises(RefusedError, match="'activations' must be finite") as refusal:
        check_values(SPEC, raw_bytes(array), expected=EXPECTED)
    assert refusal.value.code is ErrorCode.NON_FINITE


def test_the_largest_and_smallest_floats_are_finite() -> None:
    info = np.finfo(np.float32)
    check_values(SPEC, raw_bytes(np.array([info.max, info.min, info.smallest_subnormal, -0.0], np.float32)), expected=EXPECTED)


@pytest.mark.parametrize("label", [-1, 10, 2**62, -(2**63)])
def test_a_label_outside_the_classes_is_named_in_the_refusal(label: int) -> None:
    with pytest.raises(RefusedError, match=rf"\[0, 10\), but {label} came") as refusal:
        check_values(LABELS, raw_bytes(np.array([0, 9, label, 5], np.int64)), expected=EXPECTED)
    assert refusal.value.code is ErrorCode.LABEL_RANGE


@pytest.mark.parametrize("spec", [SPEC, LABELS])
def test_values_on_the_boundary_and_empty_pieces_pass(spec: TensorSpec) -> None:
    check_values(spec, b"", expected=EXPECTED)
    check_values(LABELS, raw_bytes(np.array([0, 9], np.int64)), expected=EXPECTED)


@pytest.mark.parametrize(("spec", "length"), [(SPEC, 1), (SPEC, 3), (SPEC, 5), (LABELS, 4), (LABELS, 9)])
def test_a_piece_that_cuts_an_element_is_refused(spec: TensorSpec, length: int) -> None:
    with pytest.raises(RefusedError, match=f"has {length} bytes, which is not a multiple of") as refusal:
        check_values(spec, bytes(length), expected=EXPECTED)
    assert refusal.value.code is ErrorCode.INVALID_TENSOR


def test_of_next_tokens_the_ignored_ones_may_be_outside_the_vocabulary() -> None:
    text = DataSpecification("text", (4,), num_classes=10, task=Task.NEXT_TOKEN, tokens=True)
    check_values(LABELS, raw_bytes(np.array([0, 9, IGNORED, IGNORED], np.int64)), expected=text)
    for wrong in (-1, 10, IGNORED - 1):
        with pytest.raises(RefusedError, match=f"but {wrong} came"):
            check_values(LABELS, raw_bytes(np.array([IGNORED, wrong], np.int64)), expected=text)
    with pytest.raises(RefusedError, match=f"but {IGNORED} came"):
        check_values(LABELS, raw_bytes(np.array([IGNORED], np.int64)), expected=EXPECTED)


def test_a_mask_is_of_zeros_and_ones() -> None:
    mask = TensorSpec("mask", DType.UINT8, (2, 3))
    check_values(mask, bytes([0, 1, 1]), expected=EXPECTED)
    with pytest.raises(RefusedError, match="'mask' must hold zeros and ones"):
        check_values(mask, bytes([0, 2]), expected=EXPECTED)
