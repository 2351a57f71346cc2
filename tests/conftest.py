"""Fixtures for every test: a program cache shared by the session, so that each program is compiled once."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from heron_common.process.quiet_libraries import quiet_libraries
from heron_common.terminal.log_setup import StructuredFormatter

quiet_libraries()
# A worker of xdist has it from the process that started it; here violations are collected instead.
os.environ.pop("HERON_LOCK_DISCIPLINE", None)

from heron_server.certificates.authority import Authority  # noqa: E402 - the libraries read their environment when they are imported
from heron_server.rounds.owner_lock import DISCIPLINE_VARIABLE, install_discipline  # noqa: E402 - before anything makes locks
from tests.client.models import TinyModel, tiny_model  # noqa: E402 - the libraries read their environment when they are imported
from tests.harness.cluster import Cluster  # noqa: E402 - the libraries read their environment when they are imported
from tests.harness.isolation import Isolation  # noqa: E402 - the libraries read their environment when they are imported
from tests.slow_variants import is_slow_variant  # noqa: E402 - with the others of tests

DISCIPLINE = install_discipline()
os.environ[DISCIPLINE_VARIABLE] = "exit"
"""Also of every server that a test starts: it ends at once if anything slow happens under the owner's lock."""

_LONGEST_FIRST = (
    "test_crashes",
    "test_first_order_programs",
    "test_bad_input",
    "test_lean_client",
    "test_demo",
    "test_learning",
    "test_export",
    "test_network_faults",
    "test_simulation",
    "test_algorithms_reference",
    "test_algorithms_ledger",
    "test_recovery",
    "test_lockstep",
    "test_examples",
    "test_transformers",
    "test_prometheus",
    "test_audit",
    "test_resnet",
    "test_held_out_score",
    "test_resumption",
    "test_resumption_clients",
    "test_service_life",
    "test_batch_norm",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--unit", action="store_true", help="only tests that start no process and open no socket, and fail those that do")
    parser.addoption("--slow-part", default="1/1", metavar="K/N", help="of the tests marked slow run the K-th of N parts only")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--unit"):
        config.pluginmanager.register(Isolation(Path(__file__).parent), "isolation")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the slow tests of other parts; begin with the files that take longest, so that two workers end at about the same time."""
    for item in items:
        if is_slow_variant(item.nodeid):
            item.add_marker("slow")
    part, parts = map(int, config.getoption("--slow-part").split("/"))
    # By name, so that a test stays in its part whatever is added.
    others = [item for item in items if item.get_closest_marker("slow") and zlib.crc32(item.nodeid.encode()) % parts != part - 1]
    config.hook.pytest_deselected(items=others)
    left_out = set(others)
    items[:] = [item for item in items if item not in left_out]
    rank = {name: position for position, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_runtest_setup() -> None:
    """Draw the same untrained weights whatever ran before: some draws of a small model are ill-conditioned, four in sixty beyond a tolerance here."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def private_directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep every process that tests start away from the user's own cache and state."""
    home = tmp_path_factory.mktemp("home")
    names = {"XDG_CACHE_HOME": str(home / "cache"), "XDG_STATE_HOME": str(home / "state")}
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    yield
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def tiny() -> TinyModel:
    """A model of two layers with its programs for two samples at a time; read, never changed."""
    return tiny_model(micro_batch=2)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """A private CA with a certificate for a server on loopback."""
    return Authority.create(tmp_path / "authority", ["127.0.0.1"])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A server and clients as real processes on loopback; all end with the test."""
    with Cluster(tmp_path) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_slow_under_the_owners_lock() -> Iterator[None]:
    """A log record, a file operation or another lock there fails the test, also where somebody caught the error."""
    yield
    found, DISCIPLINE.violations[:] = list(DISCIPLINE.violations), []
    assert found == []


@pytest.fixture(autouse=True)
def logs_are_set_up_by_each_test_for_itself() -> Iterator[None]:
    """A command that ran in this process has set up a stream that is closed by now, and a level that others do not expect."""
    yield
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one.formatter, StructuredFormatter)]:
        root.removeHandler(handler)
    for name in ("heron_server", "heron_client", "heron_common", "heron_cli"):
        logging.getLogger(name).setLevel(logging.NOTSET)
