"""What the system's tests share: trained runs, made once."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.harness.trained import TrainedRuns


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedRuns]:
    """Runs by the name of their model; each is made when it is first asked for."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        # Where the user's own module is; a command would be started there.
        patch.setattr(sys, "path", [str(folder), *sys.path])
        yield TrainedRuns(folder)
