"""Each alert fires on series that deserve it and keeps quiet on those that do not: `promtool test rules` plays hours in no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from deploy.watching.alert_rules import ALERTS
from tests.deploy.programs import DEPLOY, program, run

SERVER = 'job="heron-server",instance="s:1"'
CLIENT = 'job="heron-client",instance="c:1"'
TRAINS = (f'heron_server_phase{{{SERVER},phase="training"}}', "1x240")
FINISHED = (f'heron_server_phase{{{SERVER},phase="finished"}}', "1x240")
EXPECTS = (f"heron_server_expected_clients{{{SERVER}}}", "4x240")

Series = tuple[str, str]
CASES: dict[str, tuple[list[Series], list[Series]]] = {
    # name: (series on which it fires within four hours of minutes, series on which it does not)
    "HeronServerDown": ([(f"up{{{SERVER}}}", "1x5 0x235")], [(f"up{{{SERVER}}}", "1x5 0 1x235"), (f"up{{{CLIENT}}}", "0x240")]),
    "HeronClientDown": ([(f"up{{{CLIENT}}}", "1x5 0x235")], [(f"up{{{CLIENT}}}", "1x240"), (f"up{{{SERVER}}}", "0x240")]),
    "HeronClientsLost": (
        [TRAINS, EXPECTS, (f"heron_server_connected_clients{{{SERVER}}}", "4x5 3x235")],
        [FINISHED, EXPECTS, (f"heron_server_connected_clients{{{SERVER}}}", "0x240")],
    ),
    "HeronRoundStuck": (
        [TRAINS, (f"heron_server_rounds_completed_total{{{SERVER}}}", "0+1x60 60x180")],
        [TRAINS, (f"heron_server_rounds_completed_total{{{SERVER}}}", "0+1x240")],
    ),
    "HeronRoundsAbandoned": (
        [(f"heron_server_rounds_abandoned_total{{{SERVER}}}", "0x180 0+1x10 10x50")],
        [(f"heron_server_rounds_abandoned_total{{{SERVER}}}", "0x180 1x60")],
    ),
    "HeronCheckpointFailures": (
        [(f"heron_server_checkpoint_failures_total{{{SERVER}}}", "0x230 1x10")],
        [(f"heron_server_checkpoint_failures_total{{{SERVER}}}", "0x20 1x220")],
    ),
    "HeronDiskNearlyFull": (
        [(f"heron_server_disk_free_bytes{{{SERVER}}}", "4x240"), (f"heron_server_disk_size_bytes{{{SERVER}}}", "100x240")],
        [(f"heron_server_disk_free_bytes{{{SERVER}}}", "6x240"), (f"heron_server_disk_size_bytes{{{SERVER}}}", "100x240")],
    ),
    "HeronSpoolNearlyFull": (
        [(f"heron_server_spool_bytes{{{SERVER}}}", "95x240"), (f"heron_server_spool_budget_bytes{{{SERVER}}}", "100x240")],
        [(f"heron_server_spool_bytes{{{SERVER}}}", "50x240"), (f"heron_server_spool_budget_bytes{{{SERVER}}}", "100x240")],
    ),
    "HeronRequestsRefused": (
        [(f'heron_server_rejections_total{{{SERVER},reason="certificate_revoked"}}', "0+1x240")],
        # A straggler's refusals are everyday, a busy server's have an alert of their own.
        [
            (f'heron_server_rejections_total{{{SERVER},reason="round_over"}}', "0+9x240"),
            (f'heron_server_rejections_total{{{SERVER},reason="spool_full"}}', "0+1x240"),
        ],
    ),
    "HeronServerOverloaded": (
        [(f'heron_server_rejections_total{{{SERVER},reason="spool_full"}}', "0+20x240")],
        [
            (f'heron_server_rejections_total{{{SERVER},reason="spool_full"}}', "0+1x240"),
            (f'heron_server_rejections_total{{{SERVER},reason="draining"}}', "0+50x240"),
        ],
    ),
    "HeronDiverged": ([(f"heron_server_diverged{{{SERVER}}}", "1x240")], [(f"heron_server_diverged{{{SERVER}}}", "0x240")]),
    "HeronReplayMismatch": (
        [(f"heron_server_log_mismatches_total{{{SERVER}}}", "0x230 1x10"), (f"heron_server_replay_mismatches_total{{{SERVER}}}", "0x240")],
        [(f"heron_server_log_mismatches_total{{{SERVER}}}", "0x240"), (f"heron_server_replay_mismatches_total{{{SERVER}}}", "0x240")],
    ),
    "HeronClientMemoryNearLimit": (
        [(f"heron_client_resident_memory_bytes{{{CLIENT}}}", "95x240"), (f"heron_client_memory_limit_bytes{{{CLIENT}}}", "100x240")],
        # Without a limit there is nothing to be near to.
        [(f"heron_client_resident_memory_bytes{{{CLIENT}}}", "95x240")],
    ),
}


def firing(directory: Path, series: list[Series], name: str) -> str:
    """Return what promtool says if one is told that, after four hours, no alert of this name fires."""
    case: dict[str, Any] = {
        "interval": "1m",
        "input_series": [{"series": selector, "values": values} for selector, values in series],
        "alert_rule_test": [{"eval_time": "4h", "alertname": name, "exp_alerts": []}],
    }
    path = directory / "case.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(DEPLOY / "prometheus/alerts.yml")], "evaluation_interval": "1m", "tests": [case]}))
    result = run(program("promtool", "prometheus"), "test", "rules", path)
    return "" if result.returncode == 0 else result.stdout + result.stderr


def test_every_alert_has_a_case() -> None:
    assert list(CASES) == [alert.name for alert in ALERTS]


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    for name, (bad, good) in CASES.items():
        said = firing(tmp_path, bad, name)
        assert f'alertname="{name}"' in said, f"{name} kept quiet: {said}"
        assert firing(tmp_path, good, name) == "", name
