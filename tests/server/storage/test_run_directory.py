"""What a run keeps on disk: one process at a time, resume as started, attempt numbers never twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heron_common.errors import ConfigurationError, StorageError
from heron_server.storage.run_directory import RunDirectory, RunIdentity

CONFIGURATION = {"preset": "heron", "seed": 1, "rounds": 5, "batch_size": None}
MAY_CHANGE = frozenset({"rounds"})


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[RunDirectory]:
    opened = RunDirectory(tmp_path / "run")
    yield opened
    opened.close()


def begin(directory: RunDirectory, configuration: dict[str, Any], resume: bool, may_change: frozenset[str]) -> RunIdentity:
    """Identify and record, as a start that succeeds does."""
    identity = directory.identify(configuration, resume, may_change)
    directory.record(identity)
    return identity


def test_a_directory_serves_one_process_at_a_time(directory: RunDirectory) -> None:
    with pytest.raises(ConfigurationError, match="another heron-server"):
        RunDirectory(directory.path)
    directory.close()
    directory.close()
    RunDirectory(directory.path).close()


def test_a_path_that_cannot_be_a_directory_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=str(tmp_path)):
        RunDirectory(tmp_path / "file" / "run")


def test_a_run_is_continued_with_the_id_it_was_given(directory: RunDirectory) -> None:
    first = begin(directory, CONFIGURATION, resume=False, may_change=MAY_CHANGE)
    again = begin(directory, CONFIGURATION, resume=True, may_change=MAY_CHANGE)
    assert again.run_id == first.run_id


def test_two_runs_have_two_ids(tmp_path: Path) -> None:
    ids = set()
    for name in ("x", "y"):
        opened = RunDirectory(tmp_path / name)
        ids.add(begin(opened, CONFIGURATION, resume=False, may_change=MAY_CHANGE).run_id)
        opened.close()
    assert len(ids) == 2


def test_a_directory_with_a_run_needs_resume_and_one_without_refuses_it(directory: RunDirectory) -> None:
    with pytest.raises(ConfigurationError, match="no run in"):
        begin(directory, CONFIGURATION, resume=True, may_change=MAY_CHANGE)
    begin(directory, CONFIGURATION, resume=False, may_change=MAY_CHANGE)
    with pytest.raises(ConfigurationError, match="--resume"):
        begin(directory, CONFIGURATION, resume=False, may_change=MAY_CHANGE)


def test_every_changed_option_is_named_with_both_values(directory: RunDirectory) -> None:
    begin(directory, CONFIGURATION, resume=False, may_change=MAY_CHANGE)
    changed = {"preset": "frozen", "seed": 1, "rounds": 5, "batch_size": 32, "added": "new"}
    with pytest.raises(ConfigurationError) as caught:
        begin(directory, changed, resume=True, may_change=MAY_CHANGE)
    message = str(caught.value)
    assert "--preset was 'heron' and is now 'frozen'" in message
    assert "--batch-size was None and is now 32" in message
    assert "--added was None and is now 'new'" in message
    assert "--seed" not in message and "--rounds" not in message


def test_options_that_may_change_do(directory: RunDirectory) -> None:
    begin(directory, CONFIGURATION, resume=False, may_change=MAY_CHANGE)
    assert begin(directory, {**CONFIGURATION, "rounds": 9}, resume=True, may_change=MAY_CHANGE).configuration["rounds"] == 9


def test_a_refused_resume_changes_nothing(directory: RunDirectory) -> None:
    first = begin(directory, CONFIGURATION, resume=False, may_change=MAY_CHANGE)
    with pytest.raises(ConfigurationError):
        begin(directory, {**CONFIGURATION, "seed": 2}, resume=True, may_change=MAY_CHANGE)
    assert begin(directory, CONFIGURATION, resume=True, may_change=MAY_CHANGE) == first


def test_damaged_notes_are_a_storage_error_that_names_the_file(directory: RunDirectory) -> None:
    (directory.path / "run.json").write_text("")
    with pytest.raises(StorageError, match=r"run\.json"):
        begin(directory, CONFIGURATION, resume=True, may_change=MAY_CHANGE)


def test_summary_and_address_are_documents_in_the_directory(directory: RunDirectory) -> None:
    directory.write_summary({"rounds": []})
    directory.write_address({"pid": 1})
    assert json.loads((directory.path / "summary.json").read_text()) == {"rounds": []}
    assert json.loads((directory.path / "server.json").read_text()) == {"pid": 1}
