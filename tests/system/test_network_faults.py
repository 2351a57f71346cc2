"""Every harm that a network can do, at every call, between real processes: the run ends, the ledger balances, the weights are the undisturbed run's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from heron_common.protocol.timing import DEFAULT_LIVENESS_SECONDS
from heron_server.storage.ledger import Balance, Ledger
from tests.harness.cluster import NARROWEST, Cluster, log_of, wait_for_exit
from tests.harness.fault_proxy import Fault, FaultProxy, Harm

STEPS, ROUNDS, CLIENTS = 3, 2, 2
LIVENESS = 9
CALLS = ("Join", "FetchBlob", "NextAssignment", "TrainBatch", "SubmitUpdate", "Leave")

# Where in a call the harm is done: behind the name come some two hundred bytes of headers, then the message.
IN_THE_MESSAGE, IN_THE_PAYLOAD = 300, 20_000


def _run(directory: Path, *faults: Fault, liveness_seconds: int = LIVENESS) -> tuple[dict[str, torch.Tensor], Balance]:
    """Train; one client's network does the faults. Return the final tensors and what became of the uploads."""
    with Cluster(directory) as cluster:
        server = cluster.server(
            clients=CLIENTS,
            min_updates=CLIENTS,
            rounds=ROUNDS,
            local_steps=STEPS,
            batch_size=512,
            server_schedule="lockstep",
            liveness_seconds=liveness_seconds,
            model_options=NARROWEST,
            eval_data=None,
        )
        with FaultProxy(cluster.address, faults) as proxy:
            clients = [cluster.client(0, CLIENTS, proxy.address), cluster.client(1, CLIENTS)]
            codes = [wait_for_exit(process, 120) for process in [server, *clients]]
            assert codes == [0, 0, 0], log_of(clients[0])[-3000:]
            assert proxy.done == list(faults), "every fault was done"
        assert {attempt["attempt"] for attempt in cluster.summary()["rounds"]} == {0}
        ledger = Ledger(cluster.run_dir / "ledger.sqlite", cluster.summary()["run_id"], begins=False)
        balance = ledger.balance()
        ledger.close()
        return cluster.final_tensors(), balance


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    tensors, balance = _run(tmp_path_factory.mktemp("undisturbed"))
    assert balance == Balance(STEPS * ROUNDS * CLIENTS, STEPS * ROUNDS * CLIENTS, scored=0, rejected=0)
    return tensors


def _check(undisturbed: dict[str, torch.Tensor], directory: Path, *faults: Fault, liveness_seconds: int = LIVENESS) -> None:
    tensors, balance = _run(directory, *faults, liveness_seconds=liveness_seconds)
    assert balance.waiting == 0 and balance.accepted == balance.trained == STEPS * ROUNDS * CLIENTS
    assert [name for name in undisturbed if not torch.equal(undisturbed[name], tensors[name])] == []


def test_what_ends_a_connection_costs_nothing(undisturbed: dict[str, torch.Tensor], tmp_path: Path) -> None:
    faults = [Fault(call, harm) for call in ("Join", "FetchBlob") for harm in (Harm.RESET, Harm.TRUNCATE)]
    faults += [
        Fault("NextAssignment", Harm.RESET, downwards=True),
        Fault("TrainBatch", Harm.RESET, IN_THE_PAYLOAD),
        Fault("TrainBatch", Harm.TRUNCATE, IN_THE_PAYLOAD),
        Fault("TrainBatch", Harm.RESET, downwards=True),
        Fault("SubmitUpdate", Harm.RESET, downwards=True),
        Fault("SubmitUpdate", Harm.TRUNCATE, IN_THE_MESSAGE),
        Fault("Leave", Harm.RESET),
    ]
    _check(undisturbed, tmp_path, *faults)


def test_what_leaves_a_connection_open_and_dead_costs_only_time(undisturbed: dict[str, torch.Tensor], tmp_path: Path) -> None:
    faults = (
        Fault("TrainBatch", Harm.BLACK_HOLE, IN_THE_PAYLOAD),
        Fault("SubmitUpdate", Harm.HALF_OPEN, downwards=True),
        Fault("NextAssignment", Harm.DELAY, downwards=True),
        Fault("TrainBatch", Harm.BANDWIDTH),
    )
    _check(undisturbed, tmp_path, *faults)


def test_a_flipped_bit_is_noticed_wherever_it_is(undisturbed: dict[str, torch.Tensor], tmp_path: Path) -> None:
    faults = [
        Fault("Join", Harm.FLIP, IN_THE_MESSAGE),
        Fault("FetchBlob", Harm.FLIP, 2_000, downwards=True),
        Fault("NextAssignment", Harm.FLIP, IN_THE_MESSAGE, downwards=True),
        Fault("TrainBatch", Harm.FLIP, IN_THE_MESSAGE),
        Fault("TrainBatch", Harm.FLIP, IN_THE_PAYLOAD),
        Fault("SubmitUpdate", Harm.FLIP, IN_THE_MESSAGE),
        Fault("Leave", Harm.FLIP, IN_THE_MESSAGE),
    ]
    _check(undisturbed, tmp_path, *faults)


@pytest.mark.slow
@pytest.mark.parametrize("harm", list(Harm), ids=lambda harm: harm.value.replace(" ", "-"))
@pytest.mark.parametrize("call", CALLS)
def test_every_harm_at_every_call(call: str, harm: Harm, undisturbed: dict[str, torch.Tensor], tmp_path: Path) -> None:
    # Before its first answer a client does not know the server's liveness and assumes the usual one.
    liveness = DEFAULT_LIVENESS_SECONDS if call == "Join" else LIVENESS
    _check(undisturbed, tmp_path / "up", Fault(call, harm, IN_THE_MESSAGE), liveness_seconds=int(liveness))
    _check(undisturbed, tmp_path / "down", Fault(call, harm, downwards=True), liveness_seconds=int(liveness))
