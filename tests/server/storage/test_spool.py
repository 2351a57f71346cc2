"""Uploads on disk: a byte budget that is never exceeded by accident and always given back."""

from __future__ import annotations

import resource
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from heron_common.errors import SpoolFullError, StorageError
from heron_server.storage.spool import Spool, SpoolEntry


@contextmanager
def small_files_only() -> Iterator[None]:
    """Make the operating system refuse files beyond 64 bytes; Python ignores SIGXFSZ, so writes fail with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def stored(spool: Spool, data: bytes, always: bool = False) -> SpoolEntry:
    with spool.open(len(data), always) as writer:
        writer.write(data[:3])
        writer.write(data[3:])
        return writer.commit()


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def test_a_payload_comes_back_as_it_was_and_its_bytes_are_freed_on_release(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 100)
    entry = stored(spool, b"payload")
    assert spool.used_bytes == entry.size_bytes == 7
    assert bytes(entry.read()) == b"payload"
    spool.release(entry)
    assert spool.used_bytes == 0 and files(tmp_path / "spool") == []


def test_a_payload_is_for_the_owner_only(tmp_path: Path) -> None:
    entry = stored(Spool(tmp_path, 100), b"payload")
    assert stat.S_IMODE(entry.path.stat().st_mode) == 0o600


def test_the_budget_counts_what_is_being_written_too(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 10)
    with spool.open(6):
        with pytest.raises(SpoolFullError):
            spool.open(5)
        assert spool.used_bytes == 6
        with spool.open(4):
            assert spool.used_bytes == 10
    assert spool.used_bytes == 0


def test_what_training_waits_for_is_admitted_over_the_budget(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 10)
    first, second = stored(spool, b"0123456789"), stored(spool, b"needed next", always=True)
    assert spool.used_bytes == 21
    for entry in (first, second):
        spool.release(entry)
    assert spool.used_bytes == 0


def test_an_uncommitted_payload_is_deleted_and_freed_whatever_happens(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 100)
    with pytest.raises(RuntimeError, match="cut"), spool.open(50) as writer:
        writer.write(b"half")
        raise RuntimeError("cut")
    assert spool.used_bytes == 0 and files(tmp_path) == []


def test_what_an_earlier_process_left_is_removed_and_other_files_are_not(tmp_path: Path) -> None:
    stored(Spool(tmp_path, 100), b"left")
    (tmp_path / "notes.txt").write_text("mine")
    spool = Spool(tmp_path, 100)
    assert spool.used_bytes == 0
    assert [path.name for path in files(tmp_path)] == ["notes.txt"]


def test_what_is_needed_stays_is_taken_up_once_and_its_numbers_are_not_given_again(tmp_path: Path) -> None:
    earlier = Spool(tmp_path, 100)
    kept, left = stored(earlier, b"kept"), stored(earlier, b"left")
    spool = Spool(tmp_path, 100, needed={kept.path.name})
    assert not left.path.exists() and spool.used_bytes == 0
    with pytest.raises(StorageError, match="4 bytes instead of 5"):
        spool.recover(kept.path.name, 5)
    again = spool.recover(kept.path.name, 4)
    assert bytes(again.read()) == b"kept" and spool.used_bytes == 4
    assert stored(spool, b"new").path.name > kept.path.name
    gone = "000000077.upload"
    assert stored(Spool(tmp_path, 100, needed={gone}), b"new").path.name > gone, "a name in the ledger never comes to mean another payload"


def test_what_nobody_takes_up_is_discarded(tmp_path: Path) -> None:
    kept = stored(Spool(tmp_path, 100), b"kept")
    spool = Spool(tmp_path, 100, needed={kept.path.name})
    spool.discard([kept.path.name, "000000077.upload"])
    assert files(tmp_path) == [] and spool.used_bytes == 0


def test_a_payload_that_is_shorter_than_it_was_or_gone_is_an_error(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 100)
    entry = stored(spool, b"payload")
    entry.path.write_bytes(b"payl")
    with pytest.raises(StorageError, match="4 bytes instead of 7"):
        entry.read()
    entry.path.unlink()
    with pytest.raises(StorageError, match=str(entry.path)):
        entry.read()
    spool.release(entry)
    assert spool.used_bytes == 0


def test_a_spool_that_cannot_be_written_frees_its_reservation(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 100)
    (tmp_path / "spool").rmdir()
    with pytest.raises(StorageError):
        spool.open(10)
    assert spool.used_bytes == 0


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_disk_that_refuses_is_an_error_and_leaves_nothing(tmp_path: Path, size: int) -> None:
    spool = Spool(tmp_path, 1 << 20)
    with small_files_only(), pytest.raises(StorageError), spool.open(size) as writer:
        writer.write(b"x" * size)
        writer.commit()
    assert spool.used_bytes == 0 and files(tmp_path) == []


def test_many_threads_never_reserve_more_than_the_budget(tmp_path: Path) -> None:
    spool, refused, over = Spool(tmp_path, 64), [], []

    def work() -> None:
        for _ in range(100):
            try:
                with spool.open(16) as writer:
                    over.append(spool.used_bytes > 64)
                    writer.write(b"x" * 16)
                    entry = writer.commit()
                spool.release(entry)
            except SpoolFullError:
                refused.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(over) and spool.used_bytes == 0 and files(tmp_path) == []


def test_beyond_half_of_the_spool_nobody_takes_more_than_a_share(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 100, owner_bytes=30)
    held = [spool.open(25, owner="greedy") for _ in range(2)]
    # Up to half of the spool everybody may have all of it; beyond, one that has its share waits, and others do not.
    held.append(spool.open(5, owner="other"))
    with pytest.raises(SpoolFullError, match="50 bytes of this client wait, of 30"):
        spool.open(1, owner="greedy")
    held.append(spool.open(25, owner="other"))
    # What training waits for is admitted all the same, and what an owner gave back it may have again.
    held.append(spool.open(1, always=True, owner="greedy"))
    for writer in held[:2]:
        writer.__exit__(None, None, None)
    held.append(spool.open(25, owner="greedy"))
    for writer in held[2:]:
        writer.__exit__(None, None, None)
    assert spool.used_bytes == spool.arriving_bytes == 0


def test_what_is_still_arriving_has_a_budget_of_its_own(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1000, inbox_bytes=20)
    first = spool.open(15, owner="a")
    with pytest.raises(SpoolFullError, match="15 of 20 bytes are arriving"):
        spool.open(10, owner="b")
    with first:
        first.write(b"x" * 15)
        entry = first.commit()
    # It came whole: it waits on disk, and the next may arrive; one larger than the budget arrives alone.
    with spool.open(50, owner="b"):
        assert spool.arriving_bytes == 50
    spool.release(entry)
    assert spool.used_bytes == spool.arriving_bytes == 0
