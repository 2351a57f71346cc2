"""What makes a test a unit test, and what fails one that starts a process or opens a socket: `pytest --unit`, `make test-unit`."""

from __future__ import annotations

import _posixsubprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

UNIT_FOLDERS = ("architecture", "client", "common", "server/certificates", "server/configuration", "server/rounds", "server/storage")
"""Below tests/: whatever lies here is a unit test, unless it is marked `process`, `seconds` or `slow`, or has one of the fixtures below."""

PROCESS_FIXTURES = {"cluster", "serve", "start"}
"""Whoever asks for one of these gets a process or a listening server."""

_FORBIDDEN = {
    "os.exec": "starts a process",
    "os.fork": "starts a process",
    "os.forkpty": "starts a process",
    "os.posix_spawn": "starts a process",
    "os.spawn": "starts a process",
    "os.system": "starts a process",
    "socket.bind": "opens a socket",
    "socket.connect": "opens a socket",
    "socket.sendto": "opens a socket",
    "subprocess.Popen": "starts a process",
}
"""Audit events of Python, and what they mean. gRPC has sockets that Python does not see, and multiprocessing a way to start processes: see below."""


class Isolation:
    """The plug-in of `--unit`: leaves out what is no unit test, and fails what is none though it lies among them."""

    def __init__(self, tests: Path) -> None:
        self._folders = tuple(tests / folder for folder in UNIT_FOLDERS)
        self._found: list[str] = []
        self._watches = False
        sys.addaudithook(self._on_event)

    def is_unit(self, item: pytest.Item) -> bool:
        """Whether a test is to do without processes and sockets."""
        if any(item.get_closest_marker(name) for name in ("process", "seconds", "slow")):
            return False
        fixtures = set(getattr(item, "fixturenames", ()))
        return any(item.path.is_relative_to(folder) for folder in self._folders) and not fixtures & PROCESS_FIXTURES

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Do not import what holds no unit test: that takes as long as the tests."""
        is_outside = not any(collection_path.is_relative_to(folder) for folder in self._folders)
        return True if collection_path.name.startswith("test_") and is_outside else None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        others = [item for item in items if not self.is_unit(item)]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if self.is_unit(item)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_posixsubprocess, "fork_exec", self._refusing("_posixsubprocess.fork_exec", "starts a process"))
            for name in ("server", "insecure_channel", "secure_channel"):
                patch.setattr(grpc, name, self._refusing(f"grpc.{name}", "opens a socket"))
            self._watches = True
            try:
                return (yield)
            finally:
                self._watches = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        return (yield from self._judged(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        return (yield from self._judged(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Iterator[None]:
        return (yield from self._judged(item))

    def _judged(self, item: pytest.Item) -> Iterator[None]:
        """Fail a phase of a test in which anything was refused, also where somebody caught the error."""
        try:
            yield
        finally:
            found, self._found[:] = list(self._found), []
        if found:
            pytest.fail(f"{item.nodeid} is no unit test, it {found[0]}: mark it `process`, or do without", pytrace=False)

    def _on_event(self, event: str, _arguments: tuple[Any, ...]) -> None:
        if self._watches and event in _FORBIDDEN:
            self._refuse(event, _FORBIDDEN[event])

    def _refusing(self, name: str, what: str) -> Callable[..., Any]:
        return lambda *_, **__: self._refuse(name, what)

    def _refuse(self, name: str, what: str) -> None:
        self._found.append(f"{what} ({name})")
        # As the system would refuse it, so that libraries put away what they had begun.
        raise PermissionError(f"a unit test {what} ({name}): mark it `process`, or do without")
