"""First-order algorithms, round for round, against the same algorithms in a few lines of plain torch: same seeds, same samples, same order."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from heron_common.data.digits import DIGITS_SPECIFICATION
from heron_common.data.partition import Partition, SampleOrder, Shard
from heron_common.data.reading import SampleReader
from heron_common.data.sources import open_source
from heron_common.ids import RoundReference
from heron_server.models.registry import build_model, parse_model_options
from tests.harness.cluster import Cluster, wait_for_exit
from tests.harness.simulated import TINY_FRONT, boundaries_of, differing, run_simulation

CLIENTS = ("client-0", "client-1")
ROUNDS, STEPS, BATCH, SEED = 3, 4, 24, 3
RATES = {"adam": (3e-3, 2e-3), "sgd": (0.1, 0.05)}
"""Learning rates of client and server by optimiser."""
INTERVAL, EPOCHS, ALIGNMENT_RATE, ROWS = 2, 3, 1e-2, 80
"""Of an alignment: the latest 80 of a round's 96 rows, hence two steps a pass, and no alignment after the second round."""
ALIGNMENT_BATCH = 64

TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
"""ONNX Runtime and torch sum in different orders: single gradients differ by some 1e-6 of their size, and Adam, which divides by the gradient's own
size, hands the relative error of even the smallest entries on to the weights. The rates above move weights by 1e-2 and more in a round."""


@dataclass(frozen=True)
class Case:
    """One algorithm as it is run here."""

    preset: str
    schedule: str = "lockstep"
    optimiser: str = "adam"
    upload_interval: int = 1

    def options(self) -> dict[str, object]:
        """Return it as options of a server or a simulation."""
        client_rate, server_rate = RATES[self.optimiser]
        return {
            "preset": self.preset,
            "rounds": ROUNDS,
            "local_steps": STEPS,
            "batch_size": BATCH,
            "seed": SEED,
            "upload_interval": self.upload_interval,
            "server_schedule": self.schedule,
            "client_optimiser": self.optimiser,
            "server_optimiser": self.optimiser,
            "client_learning_rate": client_rate,
            "server_learning_rate": server_rate,
            "alignment_interval_rounds": INTERVAL,
            "alignment_epochs": EPOCHS,
            "alignment_learning_rate": ALIGNMENT_RATE,
            "alignment_max_rows": ROWS,
        }

    def order(self) -> list[tuple[str, int]]:
        """Return (client, local step) in the server's order: client after client, or step after step."""
        if self.schedule == "sequential":
            return [(client, step) for client in CLIENTS for step in range(STEPS)]
        return [(client, step) for step in range(STEPS) for client in CLIENTS]


class Samples:
    """What every client takes at every step."""

    def __init__(self) -> None:
        source = open_source("digits:train")
        self._shares = {name: source.shard(Partition(), Shard(index, len(CLIENTS))) for index, name in enumerate(CLIENTS)}

    def batch(self, client: str, round_index: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        share = self._shares[client]
        order = SampleOrder(SEED, client, round_reference=RoundReference(round_index, 0), num_examples=share.num_examples, batch_size=BATCH)
        x, y = SampleReader(share, DIGITS_SPECIFICATION).batch(order.indices(step))
        return torch.from_numpy(x), torch.from_numpy(y)


def reference(case: Case) -> Iterator[dict[str, torch.Tensor]]:
    """Train with plain torch and yield the weights at every round boundary, named as in checkpoints."""
    model = build_model("cnn", parse_model_options(TINY_FRONT), data=DIGITS_SPECIFICATION, seed=SEED)
    front, head, back = model.front, model.auxiliary_head, model.back
    make = torch.optim.Adam if case.optimiser == "adam" else torch.optim.SGD
    client_rate, server_rate = RATES[case.optimiser]
    at_cut, aligns, replicates = case.preset.startswith("sfl"), case.preset == "fsl-sage", case.preset == "sflv1"
    own_heads = dict.fromkeys(CLIENTS, head)
    backs = {name: copy.deepcopy(back) if replicates else back for name in CLIENTS}
    one = make(back.parameters(), server_rate)
    back_steps = {name: make(backs[name].parameters(), server_rate) if replicates else one for name in CLIENTS}
    samples = Samples()
    for round_index in range(ROUNDS):
        # The presets' rate of the client falls linearly to nothing over the run.
        rate = client_rate * (1 - round_index / ROUNDS)
        fronts = {name: copy.deepcopy(front) for name in CLIENTS}
        heads = {name: copy.deepcopy(own_heads[name] if aligns else head) for name in CLIENTS}
        trained = {name: nn.ModuleList([fronts[name]] if at_cut or aligns else [fronts[name], heads[name]]) for name in CLIENTS}
        steps = {name: make(trained[name].parameters(), rate) for name in CLIENTS}
        kept: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {name: [] for name in CLIENTS}
        for name, step in case.order():
            x, y = samples.batch(name, round_index, step)
            steps[name].zero_grad()
            z = fronts[name](x)
            at_server = z.detach().requires_grad_()
            if step % case.upload_interval == 0:
                back_steps[name].zero_grad()
                cross_entropy(backs[name](at_server), y).backward()
                back_steps[name].step()
                kept[name].append((z.detach(), y))
            if at_cut:
                z.backward(at_server.grad)
            else:
                cross_entropy(heads[name](z), y).backward()
            steps[name].step()
        average(front, fronts.values())
        if replicates:
            average(back, backs.values())
            for replica in backs.values():
                replica.load_state_dict(back.state_dict())
        if not at_cut and not aligns:
            average(head, heads.values())
        if aligns and round_index % INTERVAL == 0:
            own_heads = {name: aligned(own_heads[name], back, kept[name]) for name in CLIENTS}
        found = {
            f"{part}.{key}": value for part, m in (("front", front), ("head", head), ("back", back)) for key, value in m.named_parameters()
        }
        if aligns:
            found |= {f"aligned_head.{name}": torch.cat([p.reshape(-1) for p in own.parameters()]) for name, own in own_heads.items()}
        yield {key: value.detach().clone() for key, value in found.items()}


def average(into: nn.Module, members: object) -> None:
    states = [member.state_dict() for member in members]  # type: ignore[attr-defined]
    into.load_state_dict({key: torch.stack([state[key].float() for state in states]).mean(0) for key in states[0]})


def aligned(head: nn.Module, back: nn.Module, rows: list[tuple[torch.Tensor, torch.Tensor]]) -> nn.Module:
    """Fit a head's gradients at the cut to the back's, on the latest rows in the order of uploads."""
    head = copy.deepcopy(head)
    steps = torch.optim.Adam(head.parameters(), ALIGNMENT_RATE)
    z, y = torch.cat([z for z, _ in rows])[-ROWS:], torch.cat([y for _, y in rows])[-ROWS:]
    for _ in range(EPOCHS):
        for start in range(0, len(y), ALIGNMENT_BATCH):
            part, labels = z[start : start + ALIGNMENT_BATCH].requires_grad_(), y[start : start + ALIGNMENT_BATCH]
            (target,) = torch.autograd.grad(cross_entropy(back(part), labels, reduction="sum"), part)
            (found,) = torch.autograd.grad(cross_entropy(head(part), labels, reduction="sum"), part, create_graph=True)
            steps.zero_grad()
            (found - target).square().sum().backward()
            steps.step()
    return head


def assert_follows(boundaries: list[dict[str, torch.Tensor]], case: Case) -> None:
    expected = list(reference(case))
    assert len(boundaries) == len(expected) + 1
    for round_index, (before, after, wanted) in enumerate(zip(boundaries[:-1], boundaries[1:], expected, strict=True)):
        for name, value in wanted.items():
            torch.testing.assert_close(after[name], value, **TOLERANCE, msg=lambda text, r=round_index, n=name: f"round {r}, {n}: {text}")
        for part in ("front", "back"):
            moved = max(float((after[n] - before[n]).abs().max()) for n in wanted if n.startswith(part))
            assert moved > 100 * TOLERANCE["atol"], f"the {part} moved by {moved} in round {round_index}: the comparison shows nothing"


@pytest.mark.parametrize(
    "case",
    [
        Case("cse-fsl"),
        Case("cse-fsl", "sequential", "sgd"),
        Case("cse-fsl", upload_interval=2),
        Case("fsl-sage"),
        Case("fsl-sage", optimiser="sgd"),
        Case("sflv2", "sequential"),
        Case("sflv2", "lockstep", "sgd"),
        Case("sflv1"),
        Case("sflv1", "sequential", "sgd"),
    ],
    ids=lambda case: f"{case.preset}-{case.schedule}-{case.optimiser}-k{case.upload_interval}",
)
def test_every_round_ends_where_plain_torch_ends(case: Case, tmp_path: Path) -> None:
    assert_follows(run_simulation(tmp_path / "run", **case.options()).boundaries, case)


def test_processes_over_a_network_end_where_plain_torch_ends(cluster: Cluster) -> None:
    case = Case("sflv2", "sequential")
    server = cluster.server(**{**case.options(), "model_options": TINY_FRONT, "keep_checkpoints": ROUNDS + 1})
    assert [wait_for_exit(process) for process in [*cluster.clients(len(CLIENTS)), server]] == [0, 0, 0]
    assert_follows(boundaries_of(cluster.run_dir), case)


@pytest.mark.invariant(15)
def test_one_client_with_one_step_a_round_is_descent_of_the_unsplit_model(tmp_path: Path) -> None:
    """SFLV2 with h = k = 1, N = 1: every round is a step of SGD on back(front(x)), as if nothing had been cut."""
    rounds, rate = 6, 0.1
    run = run_simulation(
        tmp_path / "run",
        preset="sflv2",
        clients=1,
        rounds=rounds,
        local_steps=1,
        batch_size=BATCH,
        seed=SEED,
        client_optimiser="sgd",
        server_optimiser="sgd",
        client_learning_rate=rate,
        server_learning_rate=rate,
        final_rate_fraction=1.0,
    )
    model = build_model("cnn", parse_model_options(TINY_FRONT), data=DIGITS_SPECIFICATION, seed=SEED)
    unsplit = nn.Sequential(model.front, model.back)
    steps = torch.optim.SGD(unsplit.parameters(), rate)
    share = open_source("digits:train").shard(Partition(), Shard(0, 1))
    for round_index in range(rounds):
        order = SampleOrder(
            SEED, CLIENTS[0], round_reference=RoundReference(round_index, 0), num_examples=share.num_examples, batch_size=BATCH
        )
        x, y = SampleReader(share, DIGITS_SPECIFICATION).batch(order.indices(0))
        steps.zero_grad()
        cross_entropy(unsplit(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        steps.step()
        for part, module in (("front", model.front), ("back", model.back)):
            for key, value in module.named_parameters():
                torch.testing.assert_close(run.boundaries[round_index + 1][f"{part}.{key}"], value.detach(), **TOLERANCE)


@pytest.mark.invariant(16)
def test_of_one_client_a_replicated_back_is_the_back_bit_for_bit(tmp_path: Path) -> None:
    """SFLV1 with N = 1 is SFLV2 with N = 1; only the names of the optimiser's moments differ."""
    one, other = (run_simulation(tmp_path / preset, **{**Case(preset).options(), "clients": 1}).boundaries for preset in ("sflv1", "sflv2"))
    for before, after in zip(one, other, strict=True):
        assert [name for name in differing(before, after) if not name.startswith(("optimiser.", "replica."))] == []
        moments = {name.replace(f"replica.{CLIENTS[0]}/", "optimiser.back."): value for name, value in before.items() if "replica." in name}
        assert differing(moments, {name: value for name, value in after.items() if name.startswith("optimiser.back.")}) == []


@pytest.mark.invariant(14)
def test_a_head_that_the_server_trains_is_the_head_that_the_client_would_train(tmp_path: Path) -> None:
    """With h = k = 1 and one SGD for all, the head sees the same activations in the same order on either side, and the front the same heads."""
    rate = 0.1
    shared = {
        "preset": "cse-fsl",
        "clients": 1,
        "rounds": 6,
        "local_steps": 1,
        "batch_size": BATCH,
        "client_optimiser": "sgd",
        "server_optimiser": "sgd",
        "client_learning_rate": rate,
        "server_learning_rate": rate,
        "final_rate_fraction": 1.0,
    }
    local, served = (run_simulation(tmp_path / by, **shared, head_training=by).boundaries for by in ("client", "server"))
    assert len(local) == len(served) == shared["rounds"] + 1
    for one, other in zip(local, served, strict=True):
        for name in (n for n in one if n.startswith(("front.", "head.", "back."))):
            torch.testing.assert_close(one[name], other[name], **TOLERANCE)
    assert not np.allclose(local[0]["head.1.weight"], local[-1]["head.1.weight"], **TOLERANCE)
