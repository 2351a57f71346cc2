"""Rounds submitted as logs of coefficients: the server's replay is the client's walk bit for bit, and a log that is not is answered by a request for weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heron_client.training import local_training
from heron_common.error_catalog import ErrorCode
from heron_common.ids import RoundReference
from heron_common.numerics.directions import DirectionDistribution, Directions, derive_seed
from heron_common.numerics.layout import FlatLayout
from heron_proto.v1 import split_training_pb2 as pb
from heron_server.models.split_model import SplitModel
from tests.harness.cluster import Cluster, log_of, wait_for_exit
from tests.harness.polling import eventually
from tests.harness.simulated import TINY_FRONT, boundaries_of, differing, run_simulation
from tests.server.running_server import RunningServer
from tests.server.wire_client import DEADLINE, WireClient, refused, trailer_of

Serve = Callable[..., RunningServer]
Coefficients = np.ndarray[Any, np.dtype[np.float64]]

SEED = 4
RUN: dict[str, Any] = {"clients": 2, "rounds": 3, "local_steps": 5, "batch_size": 8, "seed": SEED, "direction_groups": 4}


class LoggingClient(WireClient):
    """A client that walks along its directions by coefficients that it makes up, and submits them."""

    def __init__(self, target: str, model: SplitModel, name: str = "a") -> None:
        super().__init__(target, name)
        self._layout = FlatLayout(model.to_spec().client_model)

    def take_part(self) -> None:
        """Upload everything that the round asks for."""
        self.await_assignment(self.assignment.round if self.assignment.HasField("round") else None)
        for step in range(self.assignment.plan.local_steps):
            self.upload(step)

    @property
    def start(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.frombuffer(self.blob(self.assignment.client_model.sha256), "<f4").copy()

    def coefficients(self, size: float = 0.1) -> Coefficients:
        plan = self.assignment.plan
        return np.random.default_rng(len(self.name)).normal(0, size, (plan.local_steps, plan.direction_groups * plan.num_directions))

    def arrival(self, coefficients: Coefficients) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the weights at the end of the walk: theta_i += fl32(a s) u_i, one weight after the other."""
        theta, scales = self.start, list(self.assignment.direction_scales)
        owner = [tensor for tensor, spec in enumerate(self._layout.specs) for _ in range(spec.num_elements)]
        reference = RoundReference(self.assignment.round.round_index, self.assignment.round.attempt)
        for step, row in enumerate(coefficients):
            seed = derive_seed(self.run_seed, self.name, round_reference=reference, purpose="direction", index=step)
            directions = Directions(seed, DirectionDistribution.RADEMACHER, self._layout)
            for group, a in enumerate(row):
                signs = directions.materialise(group)
                for i in range(len(theta)):
                    theta[i] = np.float32(theta[i]) + np.float32(a * scales[owner[i]]) * signs[i]
        return theta

    def join(self, **overrides: Any) -> pb.JoinResponse:
        response = super().join(**overrides)
        self.run_seed = response.run_seed
        return response

    def submit_log(self, coefficients: Coefficients, digest: bytes, **header: Any) -> pb.SubmitUpdateResponse:
        data = coefficients.astype("<f8").tobytes()
        spec = pb.TensorSpec(name="coefficients", dtype=pb.DTYPE_FLOAT64, shape=coefficients.shape)
        fields: dict[str, Any] = {
            "session": self.session,
            "run_id": self.run_id,
            "round": self.assignment.round,
            "steps_completed": self.assignment.plan.local_steps,
            "encoding": pb.UPDATE_ENCODING_LOG,
            "tensors": [spec],
            "total_bytes": len(data),
            "weights_sha256": digest,
            **header,
        }
        parts = [
            pb.SubmitUpdateRequest(header=pb.UpdateHeader(**fields)),
            pb.SubmitUpdateRequest(chunk=pb.TensorChunk(tensor_index=0, data=data)),
            pb.SubmitUpdateRequest(trailer=trailer_of([data])),
        ]
        return self.stub.SubmitUpdate(iter(parts), timeout=DEADLINE)


def digest_of(weights: np.ndarray[Any, Any]) -> bytes:
    return hashlib.sha256(weights.astype("<f4").tobytes()).digest()


def logging_server(serve: Serve, **options: Any) -> RunningServer:
    return serve(preset="heron", update_encoding="log", seed=SEED, **options)


def closed(server: RunningServer, rounds: int = 1) -> None:
    eventually(lambda: server.state.machine.round.round_index == rounds, what="the round to close")


def mismatches(server: RunningServer, name: str = "a") -> tuple[float, int]:
    return server.sample("log_mismatches_total"), server.state.registry.by_name[name].log_mismatches


def test_the_next_round_starts_where_the_replayed_log_arrives(serve: Serve, tiny_model: SplitModel) -> None:
    server = logging_server(serve)
    with LoggingClient(server.target, tiny_model) as client:
        client.join()
        for completed in (1, 2):
            client.take_part()
            log = client.coefficients()
            weights = client.arrival(log)
            assert not np.array_equal(weights, client.start)
            client.submit_log(log, digest_of(weights))
            closed(server, completed)
            client.await_assignment(after=client.assignment.round)
            assert client.start.tobytes() == weights.tobytes()
            client.assignment = pb.Assignment()
    assert mismatches(server) == (0, 0)


def test_a_log_that_is_sent_again_because_its_answer_got_lost_counts_once(serve: Serve, tiny_model: SplitModel) -> None:
    server = logging_server(serve, clients=2)
    with LoggingClient(server.target, tiny_model) as client, LoggingClient(server.target, tiny_model, "other") as other:
        client.join()
        other.join()
        client.take_part()
        other.take_part()
        log = client.coefficients()
        weights = client.arrival(log)
        for _ in range(3):
            client.submit_log(log, digest_of(weights))
        last = other.coefficients()
        others = other.arrival(last)
        other.submit_log(last, digest_of(others))
        closed(server)
        client.submit_log(log, digest_of(weights))
        client.await_assignment(after=client.assignment.round)
        mean = ((weights.astype(np.float64) + others) / 2).astype(np.float32)
        assert client.start.tobytes() == mean.tobytes()
    assert server.spooled_bytes == 0


def wrong_digest(client: LoggingClient, log: Coefficients, weights: np.ndarray[Any, Any]) -> None:
    client.submit_log(log, digest_of(weights + 1))


def no_digest(client: LoggingClient, log: Coefficients, weights: np.ndarray[Any, Any]) -> None:
    client.submit_log(log, b"")


def one_bit_flipped(client: LoggingClient, log: Coefficients, weights: np.ndarray[Any, Any]) -> None:
    """A coefficient off by one of float32's last places: far below what any tolerance would show."""
    changed = log.copy()
    changed[-1, -1] *= 1 + 2**-22
    client.submit_log(changed, digest_of(weights))


def steps_swapped(client: LoggingClient, log: Coefficients, weights: np.ndarray[Any, Any]) -> None:
    client.submit_log(log[::-1].copy(), digest_of(weights))


def beyond_float32(client: LoggingClient, log: Coefficients, weights: np.ndarray[Any, Any]) -> None:
    """Finite coefficients whose steps are not."""
    client.submit_log(np.full_like(log, 1e300), digest_of(weights))


def infinite_and_honest_about_it(client: LoggingClient, log: Coefficients, weights: np.ndarray[Any, Any]) -> None:
    """Weights that are not finite are refused even where the digest names them."""
    with np.errstate(over="ignore", invalid="ignore"):
        huge = np.full_like(log, 1e300)
        client.submit_log(huge, digest_of(client.arrival(huge)))


@pytest.mark.parametrize(
    "wrong",
    [wrong_digest, no_digest, one_bit_flipped, steps_swapped, beyond_float32, infinite_and_honest_about_it],
    ids=lambda f: f.__name__,
)
def test_a_log_that_arrives_elsewhere_is_answered_by_a_request_for_the_weights(
    serve: Serve, tiny_model: SplitModel, wrong: Callable[..., None]
) -> None:
    server = logging_server(serve)
    with LoggingClient(server.target, tiny_model) as client:
        client.join()
        client.take_part()
        log = client.coefficients()
        weights = client.arrival(log)
        eventually(lambda: server.untrained == 0, what="the trainer to be idle")
        with refused(server, ErrorCode.LOG_MISMATCH):
            wrong(client, log, weights)
        assert mismatches(server) == (1, 1)
        assert server.sample("rounds_completed_total") == 0
        client.update(weights, weights_sha256=digest_of(weights))
        closed(server)
        client.await_assignment(after=client.assignment.round)
        assert client.start.tobytes() == weights.tobytes(), "the round closes with the weights themselves"
    assert server.parts.worker.rounds[0].updates == 1
    eventually(lambda: server.spooled_bytes == 0 and not server.spooled_files, what="the spool to be empty")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_log_with_a_coefficient_that_is_not_finite_is_refused_before_it_is_replayed(
    serve: Serve, tiny_model: SplitModel, value: float
) -> None:
    server = logging_server(serve)
    with LoggingClient(server.target, tiny_model) as client:
        client.join()
        client.take_part()
        eventually(lambda: server.untrained == 0, what="the trainer to be idle")
        log = client.coefficients()
        log[0, -1] = value
        with refused(server, ErrorCode.NON_FINITE):
            client.submit_log(log, digest_of(client.start))
    assert mismatches(server) == (0, 0)


def test_a_plan_with_dense_updates_takes_no_log(serve: Serve, tiny_model: SplitModel) -> None:
    server = serve(preset="heron", update_encoding="dense")
    with LoggingClient(server.target, tiny_model) as client:
        client.join()
        client.take_part()
        eventually(lambda: server.untrained == 0, what="the trainer to be idle")
        log = client.coefficients()
        with refused(server, ErrorCode.INVALID_TENSOR):
            client.submit_log(log, digest_of(client.arrival(log)))


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "heron"},
        {"preset": "heron", "head_training": "client", "num_directions": 2, "client_optimiser": "sgd", "client_learning_rate": 0.01},
        {"preset": "heron-server-loss"},
        {"preset": "ho-sfl", "upload_interval": 1},
    ],
    ids=["heron", "heron, head by the client", "heron-server-loss", "ho-sfl"],
)
def test_a_run_of_logs_ends_like_a_run_of_weights_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    logged, dense = (run_simulation(tmp_path / by, **RUN, **options, update_encoding=by) for by in ("log", "dense"))
    assert len(logged.boundaries) == len(dense.boundaries) == RUN["rounds"] + 1
    for one, other in zip(logged.boundaries, dense.boundaries, strict=True):
        assert differing(one, other) == []
    assert differing({k: v for k, v in dense.boundaries[0].items() if "front" in k}, dense.boundaries[-1]), "the front moved"
    assert [row["log_mismatches"] for row in logged.summary["clients"].values()] == [0, 0]
    sizes = [next(iter(run.summary["clients"].values()))["bytes_up"]["update"] for run in (logged, dense)]
    assert sizes[0] != sizes[1], "one run sent coefficients, the other weights"


def test_clients_whose_logs_are_all_doubted_send_their_weights_and_the_run_ends_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real client's side: it is asked for the weights every round, and the result is that of a dense run."""
    options = {**RUN, "preset": "heron", "warmup_rounds": 0}
    dense = run_simulation(tmp_path / "dense", **options, update_encoding="dense")
    monkeypatch.setattr(local_training, "weights_digest", lambda theta: digest_of(theta)[::-1])
    doubted = run_simulation(tmp_path / "log", **options, update_encoding="log")
    for one, other in zip(doubted.boundaries, dense.boundaries, strict=True):
        assert differing(one, other) == []
    assert [row["log_mismatches"] for row in doubted.summary["clients"].values()] == [RUN["rounds"]] * RUN["clients"]
    assert [record["updates"] for record in doubted.summary["rounds"]] == [RUN["clients"]] * RUN["rounds"]


@pytest.mark.invariant(10)
@pytest.mark.slow
def test_logs_of_processes_over_a_network_are_replayed_bit_for_bit(cluster: Cluster, tmp_path: Path) -> None:
    options = {**RUN, "preset": "heron", "update_encoding": "log", "server_schedule": "lockstep"}
    server = cluster.server(**options, model_options=TINY_FRONT, keep_checkpoints=RUN["rounds"] + 1)
    clients = cluster.clients(RUN["clients"])
    assert [wait_for_exit(process) for process in [*clients, server]] == [0, 0, 0]
    assert [row["log_mismatches"] for row in cluster.summary()["clients"].values()] == [0, 0]
    assert not any("arrived elsewhere" in log_of(process) for process in clients)
    dense = run_simulation(tmp_path / "dense", **{**options, "update_encoding": "dense"})
    for one, other in zip(boundaries_of(cluster.run_dir), dense.boundaries, strict=True):
        assert differing(one, other) == []
