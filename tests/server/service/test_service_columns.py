"""Names of columns: a run without any takes those of its first client that has some, for good, and tells every later one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from heron_common.error_catalog import ErrorCode
from heron_common.specification.data_specification import MAX_COLUMNS
from heron_proto.v1 import split_training_pb2 as pb
from tests.server.running_server import RunningServer
from tests.server.wire_client import WireClient, refused

Serve = Callable[..., RunningServer]

NAMES = [f"p{place}" for place in range(16)]


def told(response: pb.JoinResponse) -> tuple[list[str], bool]:
    return list(response.data_specification.columns), response.data_specification.columns_of_client


def recorded(run_dir: Path) -> list[str] | None:
    columns: list[str] | None = json.loads((run_dir / "run.json").read_text()).get("columns")
    return columns


def test_the_first_names_are_the_run_s_on_disk_before_anybody_hears_of_them_and_after_a_restart(serve: Serve, tmp_path: Path) -> None:
    server = serve(trains=False, clients=2)
    with (
        WireClient(server.target, "nameless") as nameless,
        WireClient(server.target, "a") as first,
        WireClient(server.target, "b") as other,
    ):
        assert told(nameless.join()) == ([], False) and recorded(tmp_path / "run") is None
        assert told(first.join(columns=NAMES)) == (NAMES, True)
        assert server.parts.ledger.columns() == tuple(NAMES) and recorded(tmp_path / "run") == NAMES
        assert told(other.join(columns=NAMES[::-1])) == told(nameless.join()) == (NAMES, True)
    server.stop()
    again = serve(trains=False, clients=2, resume=True)
    with WireClient(again.target, "c") as later:
        assert told(later.join(columns=[f"q{place}" for place in range(16)])) == (NAMES, True)
    assert recorded(tmp_path / "run") == NAMES


def test_a_crash_between_ledger_and_record_loses_no_names(serve: Serve, tmp_path: Path) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as client:
        client.join(columns=NAMES)
    server.stop()
    record = tmp_path / "run" / "run.json"
    record.write_text(json.dumps({name: value for name, value in json.loads(record.read_text()).items() if name != "columns"}))
    again = serve(trains=False, resume=True)
    with WireClient(again.target) as client:
        assert told(client.join()) == (NAMES, True)
    assert recorded(tmp_path / "run") == NAMES


def test_names_that_do_not_fit_and_those_of_visitors_are_not_taken(serve: Serve) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as client:
        for names in (NAMES[:15], ["same"] * 16, ["x" * (1 << 17)] * 15 + ["y"]):
            assert told(client.join(columns=names)) == ([], False)
        assert told(client.join(columns=NAMES, only_checks=True)) == ([], False)
        with refused(server, ErrorCode.OVERSIZED):
            client.join(columns=["c"] * (MAX_COLUMNS + 1))
        assert server.parts.ledger.columns() == ()


def test_who_is_refused_teaches_nothing(serve: Serve) -> None:
    server = serve(trains=False)
    with WireClient(server.target) as member, WireClient(server.target, identity_key="other" * 5) as impostor:
        member.join()
        with refused(server, ErrorCode.NAME_IN_USE):
            impostor.join(columns=NAMES)
        assert told(member.join()) == ([], False)
