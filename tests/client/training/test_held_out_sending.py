"""A client's held-out batches: from the round's starting weights, each sample once, the same bytes again for a retry, and no trace in what is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from heron_client.training.held_out_sending import send_held_out
from heron_client.training.local_training import HeldOutSamples, LocalContext
from heron_client.training.parameters import LocalParameters
from heron_client.training.programs import Programs
from heron_common.algorithm.payload_shapes import evaluation_specs
from heron_common.algorithm.plan import Plan
from heron_common.error_catalog import ErrorCode
from heron_common.errors import HeronError, RefusedError, TransportError
from heron_common.numerics.directions import derive_seed
from heron_common.numerics.tensors import total_bytes
from heron_common.numerics.wire_dtypes import WireDtype, encode_rows
from heron_common.process.clock import ManualClock
from heron_common.protocol.messages import Assignment, UploadPurpose
from heron_common.specification.model_spec import ProgramKind
from tests.client.models import TinyModel
from tests.client.rounds import BLOB, ROUND, RUN_SEED, Network, pipeline_to, samples, small_plan
from tests.client.training.test_local_training_batch_norm import Twin, plan_of
from tests.client.training.test_local_training_batch_norm import tiny as normalising


def sent(
    tiny: TinyModel, plan: Plan, network: Network, num_held_out: int, max_batches: int = 2, kind: ProgramKind = ProgramKind.LOSS
) -> Any:
    """Let a client send its held-out batches; return its buffers."""
    spec = tiny.model.to_spec()
    parameters = LocalParameters(spec)
    parameters.theta[:] = tiny.random_weights(1)
    data, labels = samples()
    held_out = HeldOutSamples(lambda i, _: (data[i], labels[i]), num_held_out, max_batches=max_batches)
    programs = Programs([tiny.reference(kind)], lambda r: tiny.load(r.kind, parameters))
    context = LocalContext(
        "a",
        RUN_SEED,
        model=spec,
        parameters=parameters,
        programs=programs,
        read_batch=lambda i, _: (data[i], labels[i]),
        num_examples=1,
        clock=ManualClock(),
        held_out=held_out,
    )
    send_held_out(
        context,
        Assignment(ROUND, plan, client_model=BLOB, auxiliary_head=BLOB, direction_scales=(), second_moment=0.0),
        pipeline_to(network.send),
    )
    return parameters


@pytest.mark.parametrize(("num_held_out", "sizes"), [(5, [5]), (12, [12]), (15, [12, 3]), (40, [12, 12])])
@pytest.mark.parametrize("wire_dtype", [WireDtype.FLOAT32, WireDtype.INT8])
def test_each_sample_goes_up_once_from_the_starting_weights(
    tiny: TinyModel, num_held_out: int, sizes: list[int], wire_dtype: WireDtype
) -> None:
    network, plan = Network(), small_plan(wire_dtype=wire_dtype)
    parameters = sent(tiny, plan, network, num_held_out)
    assert np.array_equal(parameters.theta, tiny.random_weights(1))
    data, labels = samples()
    first = 0
    for index, ((request, payload), size) in enumerate(zip(network.uploads, sizes, strict=True)):
        assert (request.purpose, request.local_step, request.num_probes) == (UploadPurpose.EVALUATE, index, 0)
        assert request.tensors == evaluation_specs(plan, tiny.model.to_spec(), size)
        assert len(payload[0]) + len(payload[1]) == total_bytes(request.tensors)
        rows = slice(first, first + size)
        assert np.array_equal(np.frombuffer(payload[1], np.int64), labels[rows])
        z = tiny.torch_losses(parameters.theta, data[rows], labels[rows])[0]
        expected = np.asarray(z, np.float32)
        if wire_dtype is WireDtype.FLOAT32:
            assert np.allclose(np.frombuffer(payload[0], "<f4").reshape(expected.shape), expected, atol=1e-5)
        else:
            noise = derive_seed(RUN_SEED, "a", round_reference=ROUND, purpose="quantise_held_out", index=index)
            assert len(payload[0]) == len(encode_rows(expected, wire_dtype, noise_seed=noise, first_row=0))
        first += size


def test_a_retry_sends_the_same_bytes(tiny: TinyModel) -> None:
    quiet, flaky = Network(), Network(failures=[TransportError("cut"), TransportError("cut")])
    plan = small_plan(wire_dtype=WireDtype.INT8)
    for network in (quiet, flaky):
        sent(tiny, plan, network, 15)
    assert [payload for _, payload in flaky.uploads] == [payload for _, payload in quiet.uploads]
    assert len(flaky.broken) == 2


@pytest.mark.parametrize("code", [ErrorCode.NON_FINITE, ErrorCode.UNEXPECTED_UPLOAD])
def test_a_batch_that_cannot_be_scored_is_skipped(tiny: TinyModel, code: ErrorCode) -> None:
    network = Network(failures=[RefusedError(code, "no")])
    sent(tiny, small_plan(), network, 15)
    assert [request.local_step for request, _ in network.uploads] == [1]


def test_other_refusals_are_the_rounds(tiny: TinyModel) -> None:
    failures: list[HeronError] = [RefusedError(ErrorCode.ROUND_OVER, "over")]
    with pytest.raises(RefusedError, match="over"):
        sent(tiny, small_plan(), Network(failures=failures), 15)


def test_a_first_order_client_takes_the_program_that_it_has(tiny: TinyModel) -> None:
    by_loss, by_gradient = Network(), Network()
    sent(tiny, small_plan(), by_loss, 12)
    sent(tiny, small_plan("cse-fsl"), by_gradient, 12, kind=ProgramKind.GRADIENT)
    values = [np.frombuffer(network.uploads[0][1][0], "<f4") for network in (by_loss, by_gradient)]
    assert np.allclose(*values, atol=1e-6)


@pytest.mark.seconds
def test_running_statistics_stay_where_samples_are_normalised_by_their_batch() -> None:
    network, plan = Network(), plan_of("heron")
    parameters = sent(normalising(), plan, network, 5)
    assert not parameters.statistics.any(), "programs compute new ones, and nobody takes them over"
    data, _ = samples()
    twin = Twin(normalising().random_weights(1))
    with torch.no_grad():
        # A short batch is filled up with its own samples, and only they go up.
        z = twin.front(torch.from_numpy(data[np.arange(12) % 5]))[:5]
    assert np.allclose(np.frombuffer(network.uploads[0][1][0], "<f4").reshape(z.shape), z, atol=1e-5)
