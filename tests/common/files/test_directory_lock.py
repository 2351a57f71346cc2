"""A directory has one process, and one that was made for nothing goes again."""

from __future__ import annotations

from pathlib import Path

import pytest

from heron_common.errors import InUseError
from heron_common.files.directory_lock import DirectoryLock


def test_a_directory_is_locked_until_it_is_closed(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "run", "heron-server", "stop it")
    with pytest.raises(InUseError, match=r"another heron-server is using .*run: stop it"):
        DirectoryLock(tmp_path / "run", "heron-server", "stop it")
    lock.close()
    lock.close()
    DirectoryLock(tmp_path / "run", "heron-server", "stop it").close()


@pytest.mark.parametrize(("was_there", "is_used", "stays"), [(False, False, False), (True, False, True), (False, True, True)])
def test_a_new_directory_goes_if_nothing_was_put_into_it(tmp_path: Path, was_there: bool, is_used: bool, stays: bool) -> None:
    path = tmp_path / "run"
    if was_there:
        path.mkdir()
    lock = DirectoryLock(path, "heron-server", "stop it")
    if is_used:
        (path / "run.json").touch()
    lock.close()
    assert path.exists() is stays
