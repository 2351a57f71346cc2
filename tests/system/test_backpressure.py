"""Greedy clients push what they may not as fast as they can: the server's memory stays, all are refused, and a well-behaved client trains meanwhile."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from heron_common.protocol.grpc_options import STREAMS_PER_CLIENT, UNREAD_STREAM_BYTES
from tests.harness.cluster import NARROWEST, Cluster, log_of, wait_for_exit

GREEDY = 30
SECONDS = 6
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "greedy_client.py"

# For every stream what gRPC takes unread, and a message of 1 MiB that is being read: nothing that grows with time or with what was refused.
BOUND_BYTES = GREEDY * STREAMS_PER_CLIENT * (UNREAD_STREAM_BYTES + (1 << 20)) + (32 << 20)


def _resident_bytes(pid: int, field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


def test_thirty_greedy_clients_cost_neither_memory_nor_anybodys_round(cluster: Cluster) -> None:
    server = cluster.server(
        clients=GREEDY + 1,
        max_clients=GREEDY + 1,
        min_updates=1,
        rounds=2,
        cohort_wait_seconds=0,
        round_deadline_seconds=6,
        local_steps=2,
        grace_seconds=0,
        liveness_seconds=9,
        eval_data=None,
        model_options=NARROWEST,
    )
    before = _resident_bytes(server.process.pid, "VmRSS")
    words = ["--server", cluster.address, "--clients", str(GREEDY), "--seconds", str(SECONDS)]
    greedy = cluster.start_command("greedy", [sys.executable, str(SCRIPT), *words])
    good = cluster.client(0, 1)
    peaks = [before]

    assert wait_for_exit(greedy) == 0
    if server.exit_code is None:
        peaks.append(_resident_bytes(server.process.pid, "VmHWM"))
    assert wait_for_exit(good) == 0, log_of(good)[-2000:]
    assert [wait_for_exit(server), cluster.rounds_completed()] == [0, 2]
    clients = cluster.summary()["clients"]
    assert clients["client-0"]["rounds_completed"] == 2
    told = json.loads(log_of(greedy).splitlines()[-1])
    assert told["chunks"] > GREEDY and "answered" not in told and "without pushback" not in told
    assert len(peaks) == 2 and peaks[1] - before < BOUND_BYTES, [peak >> 20 for peak in peaks]
