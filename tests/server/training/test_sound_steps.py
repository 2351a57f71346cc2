"""One finite upload does not ruin a run: whatever its size, weights and moments stay finite, its refusal is on record, and honest uploads go on."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from heron_common.algorithm.algorithm import Alignment
from heron_common.data.sources import parse_specification
from heron_common.ids import RoundReference
from heron_common.process.clock import ManualClock
from heron_common.protocol.messages import UploadKey, UploadPurpose
from heron_server.metrics import ServerMetrics
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel, cross_entropy, flat_parameters
from heron_server.training import stepping
from heron_server.training.alignment import HeadAlignment
from heron_server.training.gatekeeping import Gatekeeper
from heron_server.training.gates import GateSettings
from heron_server.training.proportion import ESTABLISHED, OUT_OF_PROPORTION, WINDOW, Proportion, StepReason
from heron_server.training.stepping import Stepper
from heron_server.training.trainer import Trainer, TrainerSettings
from heron_server.training.uploads import DecodedUpload
from tests.harness.polling import eventually
from tests.server.builders import plan, run_facts
from tests.server.running_server import TINY_DATA, TINY_OPTIONS, RunningServer
from tests.server.wire_client import WireClient, joined, upload_messages

GATES = GateSettings(
    norm_factor=10.0, loss_factor=3.0, gradient_factor=4.0, gate_warmup_uploads=32, quarantine_after=0, quarantine_rounds=1
)
OPTIMISERS = {"sgd": ("sgd", 0.0), "momentum": ("sgd", 0.9), "adam": ("adam", 0.0), "adamw": ("adamw", 0.0)}
CLIENTS = ("a", "b", "c", "d")
ROUNDS = 12
CLASSES = 3


def honest(seed: int, rows: int = 8) -> DecodedUpload:
    """A class is where the activations are large."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, CLASSES, rows)
    z = generator.standard_normal((rows, 2, 2, 2)).astype(np.float32) * np.float32(0.3)
    z.reshape(rows, -1)[np.arange(rows), y] += 2
    return DecodedUpload(z, y)


def scaled(upload: DecodedUpload, magnitude: float) -> DecodedUpload:
    """The same shape, of numbers around a magnitude, the largest of them it."""
    unit = upload.activations / np.abs(upload.activations).max()
    return DecodedUpload((unit.astype(np.float64) * magnitude).astype(np.float32), upload.labels)


def make_trainer(optimiser: str, trains_head: bool, replicates: bool, rate: float = 0.01, back: torch.nn.Module | None = None) -> Trainer:
    model = build_model("cnn", TINY_OPTIONS, data=parse_specification(TINY_DATA), seed=0)
    if back is not None:
        model = SplitModel(
            "own",
            model.front,
            auxiliary_head=model.auxiliary_head,
            back=back,
            sample_losses=cross_entropy,
            input_shape=(2, 2, 2),
            num_classes=CLASSES,
        )
    name, momentum = OPTIMISERS[optimiser]
    return Trainer(
        model,
        TrainerSettings(name, rate, server_weight_decay=0.001, server_momentum=momentum, device="cpu", precision="fp32"),
        trains_head=trains_head,
        replicates_back=replicates,
    )


class Line:
    """A stepper with its gatekeeper, fed by hand; `rejected` and `trained` are by client."""

    def __init__(self, trainer: Trainer, gates: bool = False) -> None:
        self.trainer = trainer
        self.rejected: list[tuple[str, str]] = []
        self.trained: list[str] = []
        metrics = ServerMetrics(CollectorRegistry(), lambda: 0.0, Path("/"))
        self.keeper = Gatekeeper(GATES if gates else None, metrics)
        self._stepper = Stepper(
            run_facts(preset_name="frozen"),
            trainer=trainer,
            gatekeeper=self.keeper,
            alignment=None,
            metrics=metrics,
            clock=ManualClock(0.0),
        )
        self._plan, self._steps = plan("frozen", batch_size=8), 0

    def upload_trained(self, upload: Any, *_: Any, **__: Any) -> None:
        self.trained.append(upload.key.client_id)

    def upload_rejected(self, upload: Any, reason: str, *_: Any) -> None:
        self.rejected.append((upload.key.client_id, reason))

    def step(self, **uploads: DecodedUpload) -> None:
        """One job: several uploads are mixed."""
        self._steps += 1
        made = tuple(
            SimpleNamespace(key=UploadKey(RoundReference(0, 0), name, purpose=UploadPurpose.TRAIN, local_step=self._steps), decoded=decoded)
            for name, decoded in uploads.items()
        )
        self._stepper.run(SimpleNamespace(uploads=made, plan=self._plan), self)  # type: ignore[arg-type]

    def close(self) -> None:
        self.trainer.close_round(CLIENTS, np.full(len(CLIENTS), 0.25))

    def loss(self) -> float:
        return float(np.mean([self.trainer.judge(honest(9000 + i)).mean() for i in range(8)]))


@pytest.fixture(autouse=True)
def decoded_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    real = stepping.decode_upload
    monkeypatch.setattr(stepping, "decode_upload", lambda upload, *rest: getattr(upload, "decoded", None) or real(upload, *rest))


def all_finite(tensors: dict[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in tensors.values() if value.is_floating_point())


def run_with(line: Line, bad_at: int, magnitude: float, mixes: bool) -> None:
    """Honest uploads of all clients, one of which sends a batch of another magnitude once."""
    for index in range(ROUNDS):
        uploads = {name: honest(100 * index + place) for place, name in enumerate(CLIENTS)}
        if index == bad_at:
            uploads["b"] = scaled(uploads["b"], magnitude)
        if mixes:
            line.step(**uploads)
        else:
            for name, upload in uploads.items():
                line.step(**{name: upload})
        assert all_finite(line.trainer.tensors())
    line.close()
    assert all_finite(line.trainer.tensors())


magnitudes = st.floats(-45.0, math.log10(3e38)).map(lambda exponent: 10.0**exponent)


cases = st.fixed_dictionaries(
    {
        "optimiser": st.sampled_from(sorted(OPTIMISERS)),
        "gates": st.booleans(),
        "shape": st.sampled_from(["back", "head", "replicas", "mixed"]),
        "bad_at": st.integers(0, ROUNDS - 1),
        "magnitude": magnitudes,
    }
)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(cases)
def test_no_magnitude_leaves_anything_infinite_or_a_back_that_learns_no_more(case: dict[str, Any]) -> None:
    no_magnitude_does_harm(**case)


@pytest.mark.parametrize("optimiser", ["sgd", "momentum"])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(magnitude=magnitudes)
def test_before_anything_is_known_no_gradient_moves_weights_farther_than_their_own_length(optimiser: str, magnitude: float) -> None:
    """Nor does what momentum makes of it while nothing else comes."""
    trainer = make_trainer(optimiser, trains_head=True, replicates=False, rate=0.1)
    parts = {"back": trainer.model.back, "head": trainer.model.auxiliary_head}
    before = {name: flat_parameters(part) for name, part in parts.items()}
    trainer.train(scaled(honest(0), magnitude))
    for name, part in parts.items():
        optimiser_of_part = trainer._optimisers[name]
        optimiser_of_part.param_groups[0]["weight_decay"] = 0.0
        for _ in range(100):
            optimiser_of_part.zero_grad(set_to_none=False)
            optimiser_of_part.step()
        length = float(np.linalg.norm(before[name]))
        assert float(np.linalg.norm(flat_parameters(part) - before[name])) <= 1.01 * max(length, 1.0)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(cases)
def test_no_magnitude_does_harm_in_many_runs(case: dict[str, Any]) -> None:
    no_magnitude_does_harm(**case)


def no_magnitude_does_harm(optimiser: str, gates: bool, shape: str, bad_at: int, magnitude: float) -> None:
    line = Line(make_trainer(optimiser, trains_head=shape == "head", replicates=shape == "replicas"), gates)
    before = line.loss()
    run_with(line, bad_at, magnitude, mixes=shape == "mixed")
    assert {name for name, _ in line.rejected} <= {"b"} and len(line.rejected) <= 1, "honest uploads are trained on"
    assert len(line.trained) + len(line.rejected) == ROUNDS * len(CLIENTS)
    assert line.loss() < before


@pytest.mark.parametrize(
    ("optimiser", "gates", "magnitude", "mixes"),
    [
        ("adam", False, 1e30, False),
        ("adam", True, 3e38, True),
        ("adamw", False, 1e15, True),
        ("sgd", False, 1e15, False),
        ("sgd", True, 1e30, False),
        ("momentum", False, 3e38, True),
    ],
)
def test_a_back_learns_as_well_as_without_the_upload_and_says_why_it_was_rejected(
    optimiser: str, gates: bool, magnitude: float, mixes: bool
) -> None:
    plain = Line(make_trainer(optimiser, trains_head=True, replicates=False), gates)
    poisoned = Line(make_trainer(optimiser, trains_head=True, replicates=False), gates)
    run_with(plain, ROUNDS - 2, 2.0, mixes)
    run_with(poisoned, ROUNDS - 2, magnitude, mixes)
    ((name, reason),) = poisoned.rejected
    assert name == "b" and reason in {"non_finite", "out_of_proportion", "activation_norm"}
    assert poisoned.keeper.report() == {"b": {reason: 1}} and poisoned.keeper.counted_rows("b", 80, 8) == 72
    assert poisoned.loss() < 1.05 * plain.loss()


@pytest.mark.parametrize("optimiser", ["adam", "adamw"])
def test_a_gradient_that_came_before_anybody_could_know_is_forgotten_by_the_moments(optimiser: str) -> None:
    """1e12 as the very first upload: with that in the second moments no weight would move again for tens of thousands of steps."""
    plain, poisoned = (Line(make_trainer(optimiser, trains_head=False, replicates=False)) for _ in range(2))
    run_with(plain, 0, 2.0, mixes=False)
    poisoned.step(z=scaled(honest(1), 1e12))
    run_with(poisoned, 0, 2.0, mixes=False)
    assert not poisoned.rejected, "nobody could know"
    moments = [value for name, value in poisoned.trainer.tensors().items() if name.endswith("exp_avg_sq")]
    assert max(float(value.max()) for value in moments) < 1e3
    assert poisoned.loss() < 1.2 * plain.loss()


def test_running_statistics_of_a_back_are_put_back(tiny_model: SplitModel) -> None:
    """A normalised layer makes activations of 1e25 ordinary: its loss and gradients are fine, its running variance is not."""
    back = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.Flatten(), torch.nn.Linear(8, CLASSES))
    line = Line(make_trainer("adam", trains_head=False, replicates=False, back=back))
    line.step(a=honest(0))
    before = copy.deepcopy(back.state_dict())
    line.step(b=scaled(honest(1), 1e25))
    assert line.rejected == [("b", "non_finite")]
    assert all(torch.equal(value, before[name]) for name, value in back.state_dict().items())
    for seed in range(2, 2 + ESTABLISHED):
        line.step(a=honest(seed))
    line.step(b=scaled(honest(1), 1e9))
    assert line.rejected[1:] == [("b", "out_of_proportion")]
    assert float(back[0].running_var.max()) < 10


@settings(max_examples=25, deadline=None, derandomize=True)
@given(magnitude=magnitudes)
def test_a_head_is_aligned_to_finite_weights_or_stays(magnitude: float) -> None:
    model = build_model("cnn", TINY_OPTIONS, data=parse_specification(TINY_DATA), seed=0)
    alignment = HeadAlignment(model, Alignment(epochs=2, learning_rate=1e-2))
    for seed, upload in enumerate([scaled(honest(0), magnitude), honest(1)]):
        alignment.keep("ab"[seed], upload)
    alignment.align()
    assert all(np.isfinite(head).all() for head in alignment.heads.values()) and "b" in alignment.heads


# ---- the rule by itself ------------------------------------------------------------------------------------------------------------------


def naive_reference(values: list[float]) -> float:
    medians = [sorted(values[max(0, end - WINDOW) : end])[(min(end, WINDOW) - 1) // 2] for end in range(ESTABLISHED, len(values) + 1)]
    return max(medians, default=0.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=60), st.floats(0.0, 1e12))
def test_the_rule_is_a_naive_one_and_survives_a_checkpoint(values: list[float], measured: float) -> None:
    known = Proportion()
    for value in values:
        known.note({"back": value})
    limit = OUT_OF_PROPORTION["back"] * naive_reference(values) or math.inf
    other = Proportion()
    other.restore(known.arrays())
    for one in (known, other):
        refusal = one.judge("back", measured)
        assert (refusal is not None) == (measured > limit)
        assert refusal is None or (refusal.reason, refusal.limit) == (StepReason.OUT_OF_PROPORTION, limit)
        assert one.judge("back", math.inf) is not None and one.judge("back", math.nan) is not None
    assert {name: value.tolist() for name, value in other.arrays().items()} == {name: v.tolist() for name, v in known.arrays().items()}


# ---- a real server -----------------------------------------------------------------------------------------------------------------------


def test_a_server_records_the_rejection_and_its_run_goes_on(serve: Callable[..., RunningServer]) -> None:
    server = serve(preset="frozen", local_steps=2, rounds=1, server_schedule="lockstep")
    with WireClient(server.target, "a") as client:
        client.join()
        client.await_assignment()
        z, y = client.batch()
        client.send_upload(upload_messages(client.upload_header(0), [np.full_like(z, 1e30).tobytes(), y.tobytes()]))
        client.upload(1)
        eventually(lambda: server.untrained == 0, what="training")
        assert server.parts.ledger.balance().rejected == 1
        assert server.sample("uploads_rejected_total", reason="non_finite") == 1 and server.sample("steps_skipped_total") == 1
    assert all_finite(server.parts.worker._tensors())
    server.parts.worker.write_summary()
    assert json.loads((server.directory.path / "summary.json").read_text())["rejected_uploads"] == {"a": {"non_finite": 1}}


@pytest.mark.parametrize(("size", "counts"), [(3e38, False), (1e9, False), (50.0, True)])
def test_weights_out_of_all_proportion_do_not_count(serve: Callable[..., RunningServer], size: float, counts: bool) -> None:
    """In a mean they would be all that is left of a front."""
    server = serve(preset="heron", update_encoding="dense", clients=2, min_updates=2, weighting="uniform", local_steps=1)
    clients = joined(server, "a", "b")
    for client in clients:
        client.await_assignment()
        client.upload(0)
    for client, weights in zip(clients, (0.25, size), strict=True):
        client.update(np.full(client.num_front, weights, "<f4"))
    after = clients[0].await_assignment(after=clients[0].assignment.round)
    front = np.frombuffer(clients[0].blob(after.client_model.sha256), "<f4")
    assert np.array_equal(front, np.full_like(front, (0.25 + size) / 2 if counts else 0.25))


def test_a_round_of_nothing_but_such_weights_leaves_the_front(serve: Callable[..., RunningServer]) -> None:
    server = serve(preset="heron", update_encoding="dense", local_steps=1)
    (client,) = joined(server, "a")
    client.await_assignment()
    before = client.blob(client.assignment.client_model.sha256)
    client.upload(0)
    client.update(np.full(client.num_front, -3e38, "<f4"))
    assert client.blob(client.await_assignment(after=client.assignment.round).client_model.sha256) == before
