"""What a device must have, and what --self-check makes of what it has."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from heron_client.config import parse_config
from heron_client.device.device_check import check_device, load_libraries
from heron_client.device.device_findings import clock_finding, disk_finding
from heron_client.device.round_memory import memory_verdict
from heron_client.training.program_timing import ProgramTiming, round_sentence
from heron_common.errors import ClockError, ConfigurationError, UnsupportedError
from heron_common.exit_codes import PERMANENT, ExitCode, exit_code_of
from heron_common.specification.model_spec import ProgramKind
from heron_server.certificates.authority import Authority
from tests.common.protocol.test_wire import MEMBERSHIP, PLAN

SELF_CHECK = ["--server", "127.0.0.1:50051", "--self-check"]
TOLD = dataclasses.replace(MEMBERSHIP, plan=PLAN)


def test_a_processor_without_what_the_libraries_need_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="lacks sse4_2, popcnt") as caught:
        check_device("x86_64", frozenset(["fpu", "sse", "sse2", "ssse3", "sse4_1", "cx16"]))
    assert exit_code_of(caught.value) == ExitCode.UNSUPPORTED and ExitCode.UNSUPPORTED in PERMANENT
    check_device("x86_64", frozenset(["ssse3", "sse4_1", "sse4_2", "popcnt", "cx16"]))
    check_device("aarch64", frozenset(["fp", "asimd", "evtstrm"]))
    # One that does not tell is tried.
    check_device("x86_64", frozenset())


def test_a_library_that_does_not_load_is_one_sentence_with_the_loaders_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "try:",
        "    raise OSError('libc.so.6: version GLIBC_2.99 not found')",
        "except OSError as exc:",
        "    raise ImportError('advice\\n' * 50) from exc",
    ]
    (tmp_path / "heron_test_library.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnsupportedError) as caught:
        load_libraries(["heron_test_library"])
    assert "GLIBC_2.99 not found" in str(caught.value) and "\n" not in str(caught.value) and "advice" not in str(caught.value)


def test_a_clock_before_the_certificate_is_to_be_started_again_and_other_mistakes_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority.create(tmp_path / "authority", ["localhost"])
    authority.issue("bed-1")
    folder = tmp_path / "authority" / "devices" / "bed-1"
    words = ["--server", "localhost:1", "--data", "digits:train", "--tls-dir", str(folder)]
    monkeypatch.setattr("heron_client.network.tls.time.time", lambda: 0.0)
    with pytest.raises(ClockError, match="set the clock") as caught:
        parse_config(words, {})
    assert exit_code_of(caught.value) == ExitCode.CLOCK and ExitCode.CLOCK not in PERMANENT
    with pytest.raises(ConfigurationError) as caught_both:
        parse_config([*words, "--threads", "0"], {})
    assert exit_code_of(caught_both.value) == ExitCode.CONFIGURATION


@pytest.mark.parametrize(("text", "count"), [("120MB", 120_000_000), ("1.5 GB", 1_500_000_000), ("64MiB", 64 << 20), ("1000", 1000)])
def test_a_memory_limit_is_read_in_its_unit_and_only_for_a_check(text: str, count: int) -> None:
    assert parse_config([*SELF_CHECK, "--memory-limit", text], {}).memory_limit_bytes == count
    with pytest.raises(ConfigurationError, match="give both or neither"):
        parse_config([*SELF_CHECK[:2], "--data", "digits:train", "--memory-limit", text], {})


@pytest.mark.parametrize("text", ["much", "12 elephants", "-5MB", "1e9"])
def test_a_memory_limit_that_is_no_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--memory-limit is bytes like 120MB"):
        parse_config([*SELF_CHECK, f"--memory-limit={text}"], {})


def test_a_full_disk_stands_in_the_way(tmp_path: Path) -> None:
    assert disk_finding(tmp_path, 1).go
    full = disk_finding(tmp_path, 1 << 60)
    assert not full.go and "free some" in full.sentence


def test_clocks_are_compared_and_only_certificates_care() -> None:
    assert "as on the server" in clock_finding(1e9, 0.1, tls=True, now=1e9 + 30).sentence
    behind = clock_finding(1e9, 0.1, tls=True, now=1e9 - 7200)
    assert "7200 s behind" in behind.sentence and "certificates are judged by it" in behind.sentence
    assert "without TLS" in clock_finding(1e9, 0.1, tls=False, now=1e9 + 7200).sentence
    assert "does not tell" in clock_finding(0.0, 0.1, tls=True, now=1e9).sentence
    assert behind.go


def test_a_round_is_estimated_by_its_passes_at_the_slowest_pace() -> None:
    # 512 passes of a plan with 64 samples, 4 steps, forward differences; a gradient counts as three passes.
    plan = dataclasses.replace(PLAN, local_steps=4, batch_size=64, num_directions=1)
    timings = [
        ProgramTiming(ProgramKind.LOSS, length=0, micro_batch=4, seconds=0.04),
        ProgramTiming(ProgramKind.GRADIENT, length=0, micro_batch=4, seconds=0.24),
    ]
    sentence = round_sentence(dataclasses.replace(MEMBERSHIP, plan=plan), timings)
    assert "about 10 s of computing for 512 passes (4 steps of 64 samples)" in sentence
    assert "cannot be estimated" in round_sentence(MEMBERSHIP, timings)


def test_memory_is_compared_with_the_limit_or_with_what_is_free() -> None:
    tight = memory_verdict(TOLD, 4 << 20, 1_000_000)
    assert not tight.go and "do not fit into the 1 MB of --memory-limit" in tight.sentence
    assert memory_verdict(TOLD, 4 << 20, 1 << 50).go
    assert "does not tell its plan" in memory_verdict(MEMBERSHIP, 4 << 20, 1 << 50).sentence
