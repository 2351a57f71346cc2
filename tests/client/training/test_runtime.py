"""Programs under ONNX Runtime: buffers are aliased, digests are checked, a program that is not the model's is refused."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from heron_client.training.parameters import LocalParameters
from heron_client.training.runtime import Program, self_test
from heron_common.errors import ProgramError
from heron_common.specification.model_spec import MAX_PROGRAM_BYTES, BlobReference, ProgramKind, ProgramReference
from tests.client.models import SHAPE, TinyModel


def test_the_self_test_passes_here() -> None:
    self_test()


def test_changing_the_working_buffer_in_place_changes_what_the_program_computes(tiny: TinyModel) -> None:
    parameters = LocalParameters(tiny.model.to_spec())
    program = tiny.load(ProgramKind.LOSS, parameters)
    x = np.random.default_rng(0).standard_normal((2, *tiny.model.input_shape), np.float32)
    y = np.array([0, 2])
    for seed in range(3):
        parameters.theta[:] = np.random.default_rng(seed).standard_normal(parameters.theta.size, np.float32) * 0.3
        parameters.show_base()
        program.run(x, y)
        z, losses = tiny.torch_losses(parameters.theta, x, y)
        np.testing.assert_allclose(program.losses, losses, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(program.activations, z, rtol=1e-4, atol=1e-5)


def test_a_front_program_ignores_the_head(tiny: TinyModel) -> None:
    parameters = LocalParameters(tiny.model.to_spec())
    parameters.theta[:] = 0.1
    parameters.show_base()
    program = tiny.load(ProgramKind.FRONT, parameters)
    x = np.ones((2, *tiny.model.input_shape), np.float32)
    program.run(x, np.zeros(2, np.int64))
    before = program.activations.copy()
    parameters.working[parameters.front_layout.num_parameters :] = 9.0
    program.run(x, np.zeros(2, np.int64))
    assert np.array_equal(before, program.activations)


def test_a_program_with_another_digest_is_refused(tiny: TinyModel) -> None:
    data = bytearray(tiny.program(ProgramKind.LOSS))
    data[-1] ^= 1
    with pytest.raises(ProgramError, match="not the one that its digest names"):
        tiny.load(ProgramKind.LOSS, LocalParameters(tiny.model.to_spec()), bytes(data))


def test_bytes_that_are_no_program_are_refused_even_with_the_right_digest(tiny: TinyModel) -> None:
    data = b"not a program"
    reference = ProgramReference(ProgramKind.LOSS, BlobReference(hashlib.sha256(data).hexdigest(), len(data)), micro_batch=2)
    with pytest.raises(ProgramError, match="ONNX model"):
        Program(
            reference, data, model=tiny.model.to_spec(), parameters=LocalParameters(tiny.model.to_spec()), specification=SHAPE, threads=1
        )


def test_an_operator_that_is_not_listed_is_refused_before_the_program_is_loaded(tiny: TinyModel) -> None:
    data = tiny.program(ProgramKind.LOSS).replace(b"LogSoftmax", b"NoSuchThng").replace(b"Relu", b"Nope")
    assert data != tiny.program(ProgramKind.LOSS)
    reference = ProgramReference(ProgramKind.LOSS, BlobReference(hashlib.sha256(data).hexdigest(), len(data)), micro_batch=2)
    with pytest.raises(ProgramError, match="the operator 'Nope'"):
        Program(
            reference, data, model=tiny.model.to_spec(), parameters=LocalParameters(tiny.model.to_spec()), specification=SHAPE, threads=1
        )


def test_an_oversized_program_is_refused_before_it_is_loaded(tiny: TinyModel) -> None:
    data = bytes(MAX_PROGRAM_BYTES + 1)
    reference = ProgramReference(ProgramKind.LOSS, BlobReference(hashlib.sha256(data).hexdigest(), len(data)), micro_batch=2)
    with pytest.raises(ProgramError, match="at most"):
        Program(
            reference, data, model=tiny.model.to_spec(), parameters=LocalParameters(tiny.model.to_spec()), specification=SHAPE, threads=1
        )


def test_a_program_for_another_micro_batch_or_model_is_refused(tiny: TinyModel) -> None:
    data = tiny.program(ProgramKind.LOSS)
    reference = tiny.reference(ProgramKind.LOSS)
    with pytest.raises(ProgramError, match="inputs are not the model's"):
        wrong = dataclasses.replace(reference, micro_batch=4)
        Program(wrong, data, model=tiny.model.to_spec(), parameters=LocalParameters(tiny.model.to_spec()), specification=SHAPE, threads=1)
    with pytest.raises(ProgramError, match="not the model's"):
        Program(
            reference,
            data,
            model=tiny.model.to_spec(),
            parameters=LocalParameters(tiny.model.to_spec()),
            specification=dataclasses.replace(SHAPE, input_shape=(1, 9, 9)),
            threads=1,
        )


def test_two_runs_give_the_same_bits(tiny: TinyModel) -> None:
    parameters = LocalParameters(tiny.model.to_spec())
    parameters.theta[:] = np.linspace(-1, 1, parameters.theta.size, dtype=np.float32)
    parameters.show_base()
    program = tiny.load(ProgramKind.LOSS, parameters)
    x = torch.randn(2, *tiny.model.input_shape, generator=torch.Generator().manual_seed(1)).numpy()
    program.run(x, np.array([0, 2]))
    first = program.losses.copy()
    program.run(x, np.array([0, 2]))
    assert np.array_equal(first, program.losses)
