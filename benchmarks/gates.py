"""What gates against poisoned uploads refuse: of honest clients with unlike data, and of one that scales its activations or sends random labels.

Digits, the front of the demo trained by exact gradients of its head, four clients, shards by Dirichlet or two classes each; one seed. No network and no
programs: the same figures reach the gate, and every mixture takes seconds. Prints the table of docs/hostile-input.md.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import torch

from heron_cli.simulation.clients import shares
from heron_common.data.check import check_source
from heron_common.data.partition import parse_partition
from heron_common.data.sources import open_source
from heron_common.data.specification import parse_specification
from heron_common.process.quiet_libraries import quiet_libraries
from heron_server.configuration.gates_section import GatesSection
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel, flat_parameters, load_flat_parameters
from heron_server.training.gates import Gate, GateSettings

OPTIONS = {"front_widths": (4, 2), "front_strides": (1, 2)}
ROUNDS, STEPS, BATCH = 30, 10, 32
SEEDS = (0,)

Poison = Callable[[torch.Tensor, torch.Tensor, np.random.Generator], tuple[torch.Tensor, torch.Tensor]]

POISONS: dict[str, Poison | None] = {
    "none": None,
    "activations x 30": lambda z, y, _: (30 * z, y),
    "activations x 3": lambda z, y, _: (3 * z, y),
    "activations x 0": lambda z, y, _: (0 * z, y),
    "random labels": lambda z, y, random: (z, torch.from_numpy(random.integers(0, 10, len(y)))),
    "labels + 1": lambda z, y, _: (z, (y + 1) % 10),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one run: shares of uploads refused, clients that were set apart at least once, accuracy at the end."""

    honest_refused: float
    poisoned_refused: float
    honest_quarantined: int
    accuracy: float


def run(num_clients: int, partition: str, poison: Poison | None, seed: int, settings: GateSettings | None) -> Outcome:
    """Train, client 0 poisoned."""
    torch.set_num_threads(1)
    specification = parse_specification("digits")
    sources = shares(open_source("digits:train"), parse_partition(partition), num_clients)
    readers = [check_source(source, specification) for source in sources]
    samples = [tuple(map(torch.from_numpy, reader.batch(np.arange(reader.num_examples)))) for reader in readers]
    test = check_source(open_source("digits:test"), specification)
    x_test, y_test = map(torch.from_numpy, test.batch(np.arange(test.num_examples)))
    model = build_model("cnn", OPTIONS, data=specification, seed=seed)
    optimiser = torch.optim.Adam(model.back.parameters(), 2e-3)
    gate = Gate(settings) if settings else None
    random, counts, refused = np.random.default_rng(seed), np.zeros(num_clients), np.zeros(num_clients)
    apart: set[int] = set()
    for round_index in range(ROUNDS):
        start, after = _weights(model), []
        for client in range(num_clients):
            _load(model, start)
            local = torch.optim.SGD([*model.front.parameters(), *model.auxiliary_head.parameters()], 0.05)
            for step in range(STEPS):
                rows = torch.from_numpy(random.integers(0, len(samples[client][0]), BATCH))
                x, y = (tensor[rows] for tensor in samples[client])
                z = model.front(x)
                sent, labels = (z.detach(), y)
                if poison is not None and client == 0:
                    sent, labels = poison(sent, labels, random)
                if step % 2 == 0:
                    counts[client] += 1
                    refused[client] += not _train(model, optimiser, sent, labels, gate, str(client), round_index)
                local.zero_grad()
                model.sample_losses(model.auxiliary_head(z), y).mean().backward()
                local.step()
            after.append(_weights(model))
        _load(model, tuple(np.mean([weights[part] for weights in after], axis=0) for part in range(2)))
        apart |= {int(name) for name in gate.quarantined(round_index + 1)} if gate else set()
    with torch.no_grad():
        accuracy = float((model.back(model.front(x_test)).argmax(1) == y_test).float().mean())
    honest = slice(0 if poison is None else 1, None)
    return Outcome(
        float(refused[honest].sum() / counts[honest].sum()),
        float(refused[0] / counts[0]) if poison is not None else 0.0,
        len(apart - ({0} if poison is not None else set())),
        accuracy,
    )


def _train(
    model: SplitModel, optimiser: torch.optim.Optimizer, z: torch.Tensor, y: torch.Tensor, gate: Gate | None, client: str, round_index: int
) -> bool:
    norm = float(z.square().mean().sqrt())
    if gate is not None and not gate.judge_norm(client, round_index, norm).accepted:
        return False
    loss = model.sample_losses(model.back(z), y).mean()
    if gate is not None and not gate.judge_loss(client, round_index, float(loss.detach())).accepted:
        return False
    optimiser.zero_grad()
    loss.backward()
    limit = gate.limit_gradient() if gate is not None else float("inf")
    length = float(torch.nn.utils.clip_grad_norm_(model.back.parameters(), limit))
    optimiser.step()
    if gate is not None:
        gate.accept(client, norm, server_loss=float(loss.detach()), gradient_norm=length)
    return True


def _weights(model: SplitModel) -> tuple[np.ndarray, ...]:
    return flat_parameters(model.front), flat_parameters(model.auxiliary_head)


def _load(model: SplitModel, weights: tuple[np.ndarray, ...]) -> None:
    load_flat_parameters(model.front, weights[0])
    load_flat_parameters(model.auxiliary_head, weights[1])


def main() -> None:
    """Print a row for each mixture."""
    quiet_libraries()
    settings = GatesSection(gates=True).settings()
    print(
        "| clients, shards | client 0 sends | honest uploads refused | honest clients set apart | poisoned uploads refused | accuracy with gates | without |"
    )
    print("|---|---|---|---|---|---|---|")
    partitions = ("dirichlet:0.1", "labels:2")
    for (clients, partition), (name, poison) in itertools.product(itertools.product((4,), partitions), POISONS.items()):
        gated = [run(clients, partition, poison, seed, settings) for seed in SEEDS]
        plain = [run(clients, partition, poison, seed, None) for seed in SEEDS]
        shown = [np.mean([getattr(outcome, field.name) for outcome in gated]) for field in dataclasses.fields(Outcome)]
        print(
            f"| {clients}, {partition} | {name} | {shown[0]:.2%} | {sum(o.honest_quarantined for o in gated)} | {shown[1]:.1%} "
            f"| {shown[3]:.1%} | {np.mean([o.accuracy for o in plain]):.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
