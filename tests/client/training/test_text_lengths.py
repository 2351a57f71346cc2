"""Batches of short texts: what they make, and send, is what they would in a run of long ones, and one program of a kind is held at a time."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heron_client.network.upload import Chunk, UploadRequest
from heron_client.training.base import MappedBase
from heron_client.training.held_out_sending import send_held_out
from heron_client.training.local_training import HeldOutSamples, LocalContext, LocalRound
from heron_client.training.parameters import LocalParameters
from heron_client.training.programs import Programs
from heron_client.training.runtime import Program
from heron_common.algorithm.payload_shapes import evaluation_specs, upload_specs
from heron_common.algorithm.plan import Plan
from heron_common.algorithm.presets import PRESETS
from heron_common.data.batch_order import Draw
from heron_common.errors import ProgramError, TransportError
from heron_common.numerics.tensors import Int64Array
from heron_common.process.clock import ManualClock
from heron_common.protocol.messages import Assignment, UploadAnswer
from heron_common.specification.data_specification import IGNORED, PADDING, DataSpecification
from heron_common.specification.model_spec import BlobReference, ProgramKind, ProgramReference
from heron_common.specification.text_lengths import cut_to_length, of_length, smallest_lengths
from heron_server.models.base import write_base
from heron_server.models.split_model import SplitModel, next_tokens
from heron_server.programs.compile import compile_function
from heron_server.programs.export import export
from heron_server.programs.publish import needed_programs
from tests.client.rounds import BLOB, ROUND, RUN_SEED, Network, pipeline_to, small_plan
from tests.harness.transformers import build, next_token, three_classes

pytestmark = pytest.mark.seconds

LENGTHS = (4, 8)
MICRO_BATCH = 2
NUM_TEXTS = 40


@dataclasses.dataclass(frozen=True)
class Published:
    """A model of texts of two lengths, its programs, and a shard."""

    model: SplitModel
    data: DataSpecification
    base: Path
    programs: dict[tuple[ProgramKind, int], bytes]
    x: Int64Array
    y: Int64Array

    @property
    def references(self) -> list[ProgramReference]:
        return [
            ProgramReference(kind, BlobReference(hashlib.sha256(data).hexdigest(), len(data)), micro_batch=MICRO_BATCH, length=length)
            for (kind, length), data in self.programs.items()
        ]

    def load(self, reference: ProgramReference, parameters: LocalParameters) -> Program:
        spec, data = self.model.to_spec(), self.programs[reference.kind, reference.length]
        return Program(
            reference, data, model=spec, parameters=parameters, specification=self.data, threads=1, base=MappedBase(self.base, spec.base)
        )

    def read(self, indices: Int64Array, length: int) -> tuple[Any, Any]:
        y = self.y[indices]
        return cut_to_length(self.x[indices], length), cut_to_length(y, length) if y.ndim > 1 else y


def published(folder: Path, family: str, data: DataSpecification, kind: ProgramKind) -> Published:
    data = dataclasses.replace(data, lengths=LENGTHS)
    model = build(folder, family, data)
    base = write_base(model.frozen, folder)
    programs = {(kind, length): export(compile_function(model.of_length(length), kind, micro_batch=MICRO_BATCH)) for length in LENGTHS}
    generator = np.random.default_rng(5)
    x = generator.integers(3, 60, (NUM_TEXTS, 8))
    x[np.arange(8) >= generator.integers(1, 8, NUM_TEXTS)[:, None]] = PADDING
    y = generator.integers(0, 3, NUM_TEXTS) if data.num_classes else next_tokens(x)
    return Published(model, data, folder / base.sha256, programs, x, y)


@pytest.fixture(scope="module")
def predicting(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return published(tmp_path_factory.mktemp("gpt2"), "gpt2", next_token(8), ProgramKind.LOSS)


@pytest.fixture(scope="module")
def classifying(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return published(tmp_path_factory.mktemp("bert"), "bert", three_classes(8), ProgramKind.GRADIENT)


class AllLongest:
    """The same samples as another order, all at the greatest length."""

    def __init__(self, order: Any) -> None:
        self._order = order

    def draw(self, local_step: int) -> Draw:
        return Draw(self._order.draw(local_step).indices, LENGTHS[-1])


def context_of(of: Published, held_out: bool = False) -> LocalContext:
    spec = of.model.to_spec()
    parameters = LocalParameters(spec)
    parameters.theta[:] = np.random.default_rng(1).standard_normal(parameters.theta.size).astype(np.float32) * np.float32(0.3)
    lengths = smallest_lengths(of.x, of.y if of.y.ndim > 1 else None, LENGTHS)
    kept = HeldOutSamples(of.read, NUM_TEXTS, max_batches=2, lengths=lengths) if held_out else None
    programs = Programs(of.references, lambda reference: of.load(reference, parameters))
    return LocalContext(
        "a",
        RUN_SEED,
        model=spec,
        parameters=parameters,
        programs=programs,
        read_batch=of.read,
        num_examples=NUM_TEXTS,
        clock=ManualClock(),
        held_out=kept,
        lengths=lengths,
    )


class CutOffOnce(Network):
    """Every upload fails the first time."""

    def send(self, request: UploadRequest, chunks: Iterator[Chunk]) -> UploadAnswer:
        if request.local_step == len(self.broken):
            self._failures.append(TransportError("cut"))
        return super().send(request, chunks)


def run_round(of: Published, plan: Plan, all_longest: bool, network: Network | None = None) -> tuple[LocalRound, LocalContext, Network]:
    context, network = context_of(of), network or Network()
    assert {kind for kind, _ in of.programs} == set(needed_programs(dataclasses.replace(PRESETS["heron"], plan=plan, warmup_rounds=0)))
    scales = (0.5,) * len(context.parameters.trained_layout(plan.trains_head).specs)
    local_round = LocalRound(
        context,
        Assignment(ROUND, plan, client_model=BLOB, auxiliary_head=BLOB, direction_scales=scales, second_moment=0.0),
        sender=pipeline_to(network.send),
        on_step=lambda *_: None,
    )
    if all_longest:
        local_round._order = AllLongest(local_round._order)  # type: ignore[assignment]
    for step in range(plan.local_steps):
        local_round.run_step(step)
    local_round.finish()
    return local_round, context, network


@pytest.mark.parametrize(("name", "preset"), [("predicting", "heron"), pytest.param("classifying", "cse-fsl", marks=pytest.mark.slow)])
def test_a_round_of_two_lengths_is_the_round_of_the_longer_to_within_rounding(
    name: str, preset: str, request: pytest.FixtureRequest
) -> None:
    of: Published = request.getfixturevalue(name)
    plan = small_plan(preset, local_steps=6, upload_interval=1)
    (short, short_context, sent), (whole, whole_context, expected) = (run_round(of, plan, all_longest) for all_longest in (False, True))
    np.testing.assert_allclose(short.meter.losses, whole.meter.losses, rtol=1e-4)
    moved = np.abs(whole_context.parameters.theta - context_of(of).parameters.theta).max()
    assert moved > 0.01
    np.testing.assert_allclose(short_context.parameters.theta, whole_context.parameters.theta, atol=2e-3 * float(moved))
    lengths = []
    for (request_, payload), (_, whole_payload) in zip(sent.uploads, expected.uploads, strict=True):
        length = request_.tensors[0].shape[1]
        lengths.append(length)
        assert request_.tensors == upload_specs(plan, of_length(of.model.to_spec(), length))
        z, whole_z = (np.frombuffer(data[0], "<f4").reshape(12, -1, 16) for data in (payload, whole_payload))
        np.testing.assert_allclose(z, whole_z[:, :length], atol=1e-4 * np.abs(whole_z).max())
        mask, whole_mask = (np.frombuffer(data[2], np.uint8).reshape(12, -1) for data in (payload, whole_payload))
        assert np.array_equal(mask, whole_mask[:, :length]) and not whole_mask[:, length:].any()
        y, whole_y = (np.frombuffer(data[1], "<i8").reshape(12, -1) for data in (payload, whole_payload))
        assert np.array_equal(y, whole_y[:, :length])
        assert name == "classifying" or (whole_y[:, length:] == IGNORED).all()
    assert set(lengths) == set(LENGTHS), "the round has batches of both"


def test_an_upload_that_is_repeated_has_its_own_steps_length(predicting: Published) -> None:
    plan = small_plan("heron", local_steps=6, upload_interval=1)
    _, context, sent = run_round(predicting, plan, all_longest=False)
    _, again, repeated = run_round(predicting, plan, all_longest=False, network=CutOffOnce())
    # A step's upload is settled, and here repeated, when the next one's begins, whose program is another where lengths change.
    assert len(repeated.broken) == 6 and [up for _, up in repeated.uploads] == [up for _, up in sent.uploads]
    assert np.array_equal(again.parameters.theta, context.parameters.theta)


def test_held_out_texts_go_up_at_the_length_that_holds_each_batch(predicting: Published) -> None:
    context, network, plan = context_of(predicting, held_out=True), Network(), small_plan("heron")
    send_held_out(
        context,
        Assignment(ROUND, plan, client_model=BLOB, auxiliary_head=BLOB, direction_scales=(), second_moment=0.0),
        pipeline_to(network.send),
    )
    assert context.lengths is not None
    order = np.argsort(context.lengths[:24], kind="stable")
    assert set(context.lengths[:24]) == set(LENGTHS)
    for index, (request, payload) in enumerate(network.uploads):
        rows = order[12 * index : 12 * (index + 1)]
        length = int(context.lengths[rows].max())
        assert request.tensors == evaluation_specs(plan, of_length(predicting.model.to_spec(), length), 12)
        assert np.array_equal(np.frombuffer(payload[1], "<i8").reshape(12, length), predicting.y[rows, :length])
    assert len(network.uploads) == 2 and network.uploads[0][0].tensors[0].shape[1] == 4


def test_one_program_of_a_kind_is_held_at_a_time(predicting: Published) -> None:
    parameters, alive = LocalParameters(predicting.model.to_spec()), []

    def load(reference: ProgramReference) -> Program:
        gc.collect()
        assert [program() for program in alive if program() is not None] == [], "the other is gone before this one comes"
        program = predicting.load(reference, parameters)
        alive.append(weakref.ref(program))
        return program

    programs = Programs(predicting.references, load)
    programs.load_each()
    assert len(alive) == 2
    program = programs.program(ProgramKind.LOSS, 8)
    assert programs.program(ProgramKind.LOSS, 8) is program and len(alive) == 2, "the longest was loaded last"
    del program
    assert programs.program(ProgramKind.LOSS, 4).activations.shape == (MICRO_BATCH, 4, 16) and len(alive) == 3


def test_a_length_without_a_program_and_a_program_of_no_length_are_refused(predicting: Published) -> None:
    parameters = LocalParameters(predicting.model.to_spec())
    front = ProgramReference(ProgramKind.FRONT, BLOB, micro_batch=MICRO_BATCH, length=8)
    with pytest.raises(ProgramError, match="the front program for texts of 4 tokens is missing"):
        Programs([*predicting.references, front], lambda reference: predicting.load(reference, parameters))
    long = dataclasses.replace(predicting.references[1], length=16)
    with pytest.raises(ProgramError, match="for texts of 16 tokens, which is no length of this run"):
        Program(
            long,
            predicting.programs[ProgramKind.LOSS, 8],
            model=predicting.model.to_spec(),
            parameters=parameters,
            specification=predicting.data,
            threads=1,
        )
