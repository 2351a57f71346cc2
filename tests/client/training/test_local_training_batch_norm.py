"""Rounds of models that normalise by the batch: weights and running statistics are those of a plain torch loop in training mode, step for step."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from heron_client.network.blob_fetcher import BlobFetcher
from heron_client.network.downloads import Download
from heron_client.training.parameters import LocalParameters
from heron_client.training.run_loader import RunLoader
from heron_client.training.runtime import Program
from heron_common.algorithm.plan import ClientOptimiser, HeadTraining, Plan, UpdateEncoding
from heron_common.algorithm.plan_counts import round_bytes
from heron_common.errors import ProgramError, TransportError
from heron_common.numerics.tensors import Float32Array
from heron_common.numerics.update_log import replay, step_directions, weights_digest
from heron_common.numerics.zeroth_order import FiniteDifference
from heron_common.process.clock import ManualClock
from heron_common.protocol.messages import Assignment
from heron_common.specification.model_spec import BlobReference, ProgramKind
from heron_server.models.batch_norm import flat_statistics
from heron_server.models.split_model import SplitModel, cross_entropy, load_flat_parameters
from heron_server.programs.compile import compile_function
from heron_server.programs.export import export
from tests.client.models import SHAPE, TinyModel
from tests.client.rounds import BLOB, ROUND, RUN_SEED, SCALE, Network, batch, run_round, small_plan

pytestmark = pytest.mark.seconds

BATCH, RATE, RADIUS = 12, 0.05, 1e-2
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


@dataclasses.dataclass(frozen=True)
class NormalisingModel(TinyModel):
    """A front and a head with batch normalisation, the front's with a momentum of its own."""

    def program(self, kind: ProgramKind, directions: int = 1) -> bytes:
        assert directions == 1, "a model that normalises by the batch is run for one direction at a time"
        return _exported(kind)


@functools.cache
def tiny() -> NormalisingModel:
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        front = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.BatchNorm2d(2, momentum=0.3), nn.ReLU()).eval()
        head = nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).eval()
    model = SplitModel(
        "by batch",
        front,
        auxiliary_head=head,
        back=nn.Identity(),
        sample_losses=cross_entropy,
        input_shape=SHAPE.input_shape,
        num_classes=3,
        batch_statistics=True,
    )
    return NormalisingModel(model, BATCH)


@functools.cache
def _exported(kind: ProgramKind) -> bytes:
    return export(compile_function(tiny().model, kind, micro_batch=BATCH))


class Twin:
    """The same model in plain torch, in training mode."""

    def __init__(self, theta: Float32Array) -> None:
        self.front = copy.deepcopy(tiny().model.front).train()
        self.head = copy.deepcopy(tiny().model.auxiliary_head).train()
        self.set(theta)

    def set(self, theta: Float32Array) -> None:
        size = sum(p.numel() for p in self.front.parameters())
        load_flat_parameters(self.front, theta[:size])
        load_flat_parameters(self.head, theta[size:])

    def losses(self, x: Any, y: Any) -> torch.Tensor:
        return cross_entropy(self.head(self.front(torch.from_numpy(x))), torch.from_numpy(y))

    def statistics(self) -> Float32Array:
        parts = [b for part in (self.front, self.head) for n, b in part.named_buffers() if "running" in n]
        return flat_statistics(parts)


def plan_of(preset: str, **changes: Any) -> Plan:
    common = {"direction_groups": 1, "micro_batch": BATCH, "local_steps": 4, "optimiser": ClientOptimiser.SGD, "learning_rate": RATE}
    return small_plan(preset, **{**common, "smoothing_radius": RADIUS, "clip_factor": 1e6, **changes})


def start() -> Float32Array:
    return tiny().random_weights(3)


def fresh() -> Float32Array:
    return Twin(start()).statistics()


def run(plan: Plan, network: Network | None = None) -> tuple[Any, list[Float32Array]]:
    seen: list[Float32Array] = []
    done = run_round(
        tiny(), plan, network or Network(), start(), statistics=fresh(), after_step=lambda now: seen.append(now.statistics.copy())
    )
    return done, seen


def by_gradients(plan: Plan) -> tuple[Float32Array, list[Float32Array]]:
    twin, seen = Twin(start()), []
    parameters = [*twin.front.parameters(), *twin.head.parameters()]
    optimiser = torch.optim.SGD(parameters, RATE)
    for step in range(plan.local_steps):
        optimiser.zero_grad()
        twin.losses(*batch(plan, step)).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        seen.append(twin.statistics())
    return np.concatenate([p.detach().numpy().reshape(-1) for p in parameters]), seen


def by_differences(plan: Plan) -> tuple[Float32Array, list[Float32Array]]:
    theta, twin, seen = start(), Twin(start()), []
    layout = LocalParameters(tiny().model.to_spec()).joint_layout
    scales = np.full(len(layout.specs), SCALE)
    for step in range(plan.local_steps):
        directions = step_directions(RUN_SEED, "a", reference=ROUND, local_step=step, distribution=plan.distribution, layout=layout)
        plus = theta.copy()
        directions.add(0, RADIUS * scales, base=theta, target=plus)
        twin.set(theta)
        other = copy.deepcopy(twin)
        other.set(plus)
        with torch.no_grad():
            derivative = float((other.losses(*batch(plan, step)).double() - twin.losses(*batch(plan, step)).double()).mean()) / RADIUS
        directions.add(0, -RATE * derivative * scales, base=theta, target=theta)
        seen.append(twin.statistics())
    return theta, seen


@pytest.mark.invariant(18)
@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("preset", ["heron", "cse-fsl"])
def test_weights_and_statistics_are_torchs_in_training_mode_step_for_step(preset: str, interval: int) -> None:
    plan = plan_of(preset, head_training=HeadTraining.CLIENT, update_encoding=UpdateEncoding.DENSE, upload_interval=interval)
    done, seen = run(plan)
    theta, expected = (by_gradients if preset == "cse-fsl" else by_differences)(plan)
    for found, wanted in zip(seen, expected, strict=True):
        np.testing.assert_allclose(found, wanted, **CLOSE)
    np.testing.assert_allclose(done.theta, theta, **CLOSE)
    assert np.abs(theta - start()).max() > 1e-2 and np.abs(seen[-1] - fresh()).max() > 1e-1
    submission = done.round.submission()
    assert [spec.name for spec in submission.tensors] == ["client_model", "auxiliary_head", "statistics"]
    assert submission.arrays[2].tobytes() == seen[-1].tobytes()
    assert submission.weights_sha256 == weights_digest(done.theta)
    assert round_bytes(plan, tiny().model.to_spec())["up"]["update"] == sum(array.nbytes for array in submission.arrays)


@pytest.mark.parametrize(("preset", "submitted"), [("sflv2", ["client_model", "statistics"]), ("frozen", ["statistics"])])
def test_a_front_without_its_head_moves_its_own_statistics_alone(preset: str, submitted: list[str]) -> None:
    plan = plan_of(preset)
    network = Network(cut_gradient=lambda request, _: np.full(request.answer_tensors[0].shape, 0.1, np.float32))
    done, seen = run(plan, network if plan.needs_cut_gradient else None)
    twin = Twin(start())
    twin.front(torch.from_numpy(batch(plan, 0)[0]))
    np.testing.assert_allclose(seen[0], twin.statistics(), **CLOSE)
    assert [spec.name for spec in done.round.submission().tensors] == submitted
    assert bool(done.round.submission().weights_sha256) == (preset == "sflv2")
    assert np.array_equal(seen[-1][4:], fresh()[4:]) and not np.array_equal(seen[-1][:4], seen[0][:4])


@pytest.mark.parametrize("difference", list(FiniteDifference))
def test_a_log_goes_with_the_statistics_and_its_digest_covers_the_weights_alone(difference: FiniteDifference) -> None:
    plan = plan_of("heron", update_encoding=UpdateEncoding.LOG, difference=difference)
    done, seen = run(plan)
    submission = done.round.submission()
    assert [(spec.name, spec.shape) for spec in submission.tensors] == [("coefficients", (4, 1)), ("statistics", (12,))]
    layout = done.parameters.front_layout
    front = start()[: layout.num_parameters]
    arrived = replay(
        front,
        submission.arrays[0],
        scales=np.full(len(layout.specs), SCALE),
        run_seed=RUN_SEED,
        client_id="a",
        reference=ROUND,
        layout=layout,
    )
    assert weights_digest(arrived) == submission.weights_sha256 and not np.array_equal(arrived, front)
    assert submission.arrays[1].tobytes() == seen[-1].tobytes()
    assert [s.name for s in done.round.submission(UpdateEncoding.DENSE).tensors] == ["client_model", "statistics"]


@pytest.mark.invariant(18)
def test_an_upload_that_is_repeated_moves_statistics_once_and_sends_the_same_bytes() -> None:
    plan = plan_of("cse-fsl")
    quiet, broken = Network(), Network(failures=[TransportError("lost"), TransportError("lost again")])
    (done, seen), (again, seen_again) = run(plan, quiet), run(plan, broken)
    assert [s.tobytes() for s in seen] == [s.tobytes() for s in seen_again]
    assert [payload for _, payload in quiet.uploads] == [payload for _, payload in broken.uploads]
    assert done.theta.tobytes() == again.theta.tobytes()


def test_statistics_that_are_not_finite_are_not_taken_over_and_end_the_training_of_the_round() -> None:
    plan = plan_of("cse-fsl")

    class Broken:
        def __init__(self, program: Program) -> None:
            self._program = program

        def __getattr__(self, name: str) -> Any:
            return getattr(self._program, name)

        @property
        def new_statistics(self) -> Float32Array:
            return np.full(12, np.nan, np.float32)

    done = run_round(tiny(), plan, Network(), start(), statistics=fresh(), wrap=lambda _, program: Broken(program))
    assert done.meter.diverged and done.parameters.statistics.tobytes() == fresh().tobytes()
    assert done.theta.tobytes() == start().tobytes()


def _blob(array: Float32Array) -> BlobReference:
    return BlobReference(hashlib.sha256(array.tobytes()).hexdigest(), array.nbytes)


def test_every_attempt_starts_from_the_statistics_that_its_assignment_names(tmp_path: Any) -> None:
    wanted = np.arange(12, dtype=np.float32)
    statistics = _blob(wanted)

    def fetch(download: Download, kind: str) -> None:
        assert kind == "weights"
        download.take(blobs[download.blob])
        download.finish()

    loader = RunLoader(BlobFetcher(fetch), tmp_path, clock=ManualClock(), give_memory_back=lambda: None)
    parameters = LocalParameters(tiny().model.to_spec())
    parameters.statistics[:] = 7
    weights = start()[: parameters.front.size]
    front = _blob(weights)
    blobs = {statistics: wanted.tobytes(), front: weights.tobytes()}
    assignment = Assignment(
        ROUND, plan_of("cse-fsl"), client_model=front, auxiliary_head=None, direction_scales=(), second_moment=0.0, statistics=statistics
    )
    loader.load_weights(parameters, assignment)
    assert parameters.statistics.tobytes() == wanted.tobytes()
    with pytest.raises(ProgramError, match="names none to start from"):
        loader.load_weights(parameters, dataclasses.replace(assignment, statistics=None))
    with pytest.raises(ProgramError, match="running statistics should have 48 bytes"):
        loader.load_weights(parameters, dataclasses.replace(assignment, statistics=BLOB))
