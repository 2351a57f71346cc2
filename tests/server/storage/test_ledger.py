"""The ledger: in order, durable after `sync`, and whatever the disk does, nothing that was queued is lost."""

from __future__ import annotations

import math
import sqlite3
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from heron_common.errors import StorageError
from heron_common.ids import RoundReference
from heron_common.protocol.messages import LocalStatistics, UploadKey, UploadPurpose
from heron_server.storage import ledger as ledger_module
from heron_server.storage.ledger import Balance, Ledger
from heron_server.storage.recorded import StoredAnswer, StoredFile
from tests.server.storage.test_spool import small_files_only

RUN = "1234567890abcdef"
FIRST = RoundReference(0, 0)
STATISTICS = LocalStatistics(**{name: index for index, name in enumerate(LocalStatistics.__dataclass_fields__)})


def key(client: str = "a", step: int = 0, reference: RoundReference = FIRST, purpose: UploadPurpose = UploadPurpose.TRAIN) -> UploadKey:
    return UploadKey(reference, client, purpose=purpose, local_step=step)


def file(number: int) -> StoredFile:
    return StoredFile(f"{number:09d}.upload", 10 + number)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "ledger.sqlite", RUN, begins=True)
    yield opened
    opened.close()


def reopened(path: Path) -> Ledger:
    """A second reader of what is on disk: nothing that is only queued."""
    return Ledger(path / "ledger.sqlite", RUN, begins=False)


def accept(ledger: Ledger, *keys: UploadKey) -> None:
    for number, one in enumerate(keys):
        ledger.upload_accepted(one, "digest", payload=file(number))


def test_columns_are_kept_in_their_order_and_older_ledgers_have_none(tmp_path: Path, ledger: Ledger) -> None:
    ledger.columns_learnt(("b", "a"))
    assert ledger.columns() == ("b", "a")
    path = tmp_path / "ledger.sqlite"
    for statement in ("UPDATE columns SET name = x'00'", "DROP TABLE columns"):
        with sqlite3.connect(path) as other:
            other.execute(statement)
        with pytest.raises(StorageError, match=r"ledger.sqlite cannot be used"):
            ledger.columns()
    older = reopened(tmp_path)
    assert older.columns() == ()
    older.close()


@pytest.mark.parametrize(("question", "table"), [("drops", "drops"), ("abandoned", "attempts"), ("quarantines", "quarantines")])
def test_every_question_says_what_is_wrong_with_the_ledger(tmp_path: Path, ledger: Ledger, question: str, table: str) -> None:
    assert getattr(ledger, question)() == {}
    with sqlite3.connect(tmp_path / "ledger.sqlite") as other:
        other.execute(f"DROP TABLE {table}")
    with pytest.raises(StorageError, match=rf"ledger.sqlite cannot be used \(no such table: {table}\): restore it"):
        getattr(ledger, question)()


def test_nothing_is_on_disk_before_sync_and_everything_after_it(tmp_path: Path, ledger: Ledger) -> None:
    ledger.round_opened(FIRST, {"a": "key of a"}, "inputs")
    accept(ledger, key())
    with_disk = reopened(tmp_path)
    assert with_disk.attempts() == ()
    ledger.sync()
    (attempt,) = with_disk.attempts()
    assert [upload.key for upload in attempt.uploads] == [key()]
    with_disk.close()


def test_whoever_syncs_first_commits_for_all(tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. Sixteen threads write and sync at once. 2. Each finds its own entry on disk when its sync returns. 3. There are fewer commits than threads' entries.
    ledger.round_opened(FIRST, {}, "inputs")
    ledger.sync()
    commits: list[int] = []
    commit = ledger._commit
    monkeypatch.setattr(ledger, "_commit", lambda batch: (commits.append(len(batch)), commit(batch)))
    path, missing, barrier = tmp_path / "ledger.sqlite", [], threading.Barrier(16)

    def work(number: int) -> None:
        connection = sqlite3.connect(path)
        barrier.wait()
        for step in range(10):
            ledger.upload_accepted(key(f"c{number}", step), "digest", payload=file(number))
            ledger.sync()
            found = connection.execute("SELECT 1 FROM uploads WHERE client_id = ? AND local_step = ?", (f"c{number}", step)).fetchone()
            if found is None:
                missing.append((number, step))
        connection.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert missing == []
    assert sum(commits) == 160 and len(commits) <= 160
    (attempt,) = ledger.attempts()
    assert len(attempt.uploads) == 160
    for number in range(16):
        assert [upload.key.local_step for upload in attempt.uploads if upload.key.client_id == f"c{number}"] == list(range(10))


def test_entries_that_wait_while_another_thread_commits_are_committed_together(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.round_opened(FIRST, {}, "inputs")
    ledger.sync()
    batches: list[int] = []
    began, may_go = threading.Event(), threading.Event()
    commit = ledger._commit

    def slowly(batch: list[tuple[str, tuple[object, ...]]]) -> None:
        batches.append(len(batch))
        began.set()
        assert may_go.wait(20)
        commit(batch)

    monkeypatch.setattr(ledger, "_commit", slowly)
    accept(ledger, key("a"))
    threads = [threading.Thread(target=ledger.sync)]
    threads[0].start()
    assert began.wait(20)
    for name in "bcd":
        accept(ledger, key(name))
        threads.append(threading.Thread(target=ledger.sync))
        threads[-1].start()
    may_go.set()
    for thread in threads:
        thread.join(20)
    assert batches[0] == 1 and sum(batches) == 4 and len(batches) <= 2


def test_a_disk_that_refuses_keeps_the_queue_in_order_and_the_next_sync_writes_it(tmp_path: Path, ledger: Ledger) -> None:
    ledger.round_opened(FIRST, {"a": ""}, "inputs")
    with small_files_only():
        with pytest.raises(StorageError, match="free some space"):
            ledger.sync()
        accept(ledger, key(step=0), key(step=1))
        with pytest.raises(StorageError, match="free some space"):
            ledger.attempts()
    ledger.upload_trained(key(step=1), 0, answer=StoredAnswer(0, 1.0, None), cut_gradient=None)
    ledger.sync()
    with_disk = reopened(tmp_path)
    (attempt,) = with_disk.attempts()
    with_disk.close()
    assert [upload.state for upload in attempt.uploads] == ["accepted", "trained"]


def test_a_ledger_that_another_process_has_locked_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "LOCKED_SECONDS", 0.05)
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path, RUN, begins=True)
    accept(ledger, key())
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match=r"ledger.sqlite is locked by another process .*: end what has it open") as caught:
        ledger.sync()
    assert "free some space" not in str(caught.value)
    other.execute("ROLLBACK")
    ledger.sync()
    assert ledger.balance().accepted == 1
    ledger.close()
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match="is locked by another process"):
        Ledger(path, RUN, begins=False)
    other.close()


def test_closing_says_what_could_not_be_written(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    ledger.round_opened(FIRST, {}, "inputs")
    with small_files_only():
        ledger.close()
    assert "free some space" in caplog.text


def test_a_ledger_of_another_run_or_version_is_refused_with_both_named(tmp_path: Path, ledger: Ledger) -> None:
    with pytest.raises(StorageError, match=r"of run 'another ', version 2, but is of run '12345678', version 2"):
        Ledger(tmp_path / "ledger.sqlite", "another run", begins=False)
    ledger._connection.execute("UPDATE run SET schema_version = 99")
    with pytest.raises(StorageError, match="version 99"):
        reopened(tmp_path)
    ledger._connection.execute("DELETE FROM run")
    with pytest.raises(StorageError, match="version 0"):
        reopened(tmp_path)


def test_a_ledger_that_is_gone_or_damaged_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with pytest.raises(StorageError, match="is gone: restore it"):
        Ledger(path, RUN, begins=False)
    assert not path.exists(), "an empty one in its place would forget what was acknowledged"
    path.write_bytes(b"not a database at all, but long enough to be read as the header of one" * 40)
    with pytest.raises(StorageError, match="cannot be used"):
        Ledger(path, RUN, begins=False)
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match="cannot be used"):
        Ledger(path, RUN, begins=True)


def test_damage_that_is_met_while_reading_is_one_sentence(tmp_path: Path, ledger: Ledger) -> None:
    ledger.round_opened(FIRST, {"a": ""}, "inputs")
    ledger.sync()
    ledger._connection.execute("UPDATE attempts SET cohort = 'no JSON'")
    with pytest.raises(StorageError, match="restore it from a backup"):
        ledger.attempts()
    ledger._connection.execute("DROP TABLE attempts")
    with pytest.raises(StorageError, match="restore it from a backup"):
        ledger.balance()


def test_a_run_that_begins_removes_what_a_start_that_failed_left(tmp_path: Path, ledger: Ledger) -> None:
    ledger.round_opened(FIRST, {}, "inputs")
    ledger.close()
    again = Ledger(tmp_path / "ledger.sqlite", "another run", begins=True)
    assert again.attempts() == () and again.begun_attempts() == {}
    again.close()


def test_the_last_attempt_that_was_begun_is_known_after_it_was_settled(ledger: Ledger) -> None:
    for reference in (FIRST, RoundReference(0, 1), RoundReference(1, 0)):
        ledger.round_opened(reference, {}, "inputs")
    ledger.settled(FIRST, "without a quorum")
    ledger.settled(RoundReference(0, 1))
    assert ledger.begun_attempts() == {0: 1, 1: 0}
    assert [attempt.round for attempt in ledger.attempts()] == [RoundReference(1, 0)]


def test_the_balance_counts_open_closed_and_undone_attempts(ledger: Ledger) -> None:
    ledger.round_opened(FIRST, {}, "inputs")
    accept(ledger, key(step=0), key(step=1), key(step=2), key(step=3, purpose=UploadPurpose.EVALUATE), key(step=4))
    ledger.upload_trained(key(step=0), 0, answer=StoredAnswer(0, 1.0, None), cut_gradient=None)
    ledger.upload_trained(key(step=1), 1, answer=StoredAnswer(1, 1.0, None), cut_gradient=None)
    ledger.upload_scored(key(step=3, purpose=UploadPurpose.EVALUATE), 2)
    ledger.upload_rejected(key(step=2), 3, "its norm")
    assert ledger.balance() == Balance(accepted=5, trained=2, scored=1, rejected=1)
    assert ledger.balance().waiting == 1
    ledger.upload_trained(key(step=4), 4, answer=StoredAnswer(2, 1.0, None), cut_gradient=None)
    ledger.settled(FIRST)
    assert ledger.balance() == Balance(accepted=5, trained=3, scored=1, rejected=1)
    undone = RoundReference(1, 0)
    ledger.round_opened(undone, {}, "inputs")
    accept(ledger, key(step=0, reference=undone), key(step=1, reference=undone))
    ledger.upload_trained(key(step=0, reference=undone), 0, answer=StoredAnswer(0, 1.0, None), cut_gradient=None)
    ledger.settled(undone, "without a quorum")
    # Undone training is no training: all of it counts as rejected.
    assert ledger.balance() == Balance(accepted=7, trained=3, scored=1, rejected=3)
    ledger.settled(undone, "a second time")
    ledger.settled(FIRST)
    assert ledger.balance().waiting == 0 and ledger.balance().accepted == 7, "settling again changes nothing"


def bits(values: tuple[float, ...]) -> list[bytes]:
    return [struct.pack("<d", value) for value in values]


def test_a_recorded_attempt_comes_back_bit_for_bit(ledger: Ledger) -> None:
    odd = (math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1 + 0.2, 1e308)
    cohort = {"b": "key of b", "a": "key of a", "ü": ""}
    ledger.round_opened(FIRST, cohort, "inputs")
    accept(ledger, key("b"), key("a"), key("ü"))
    ledger.upload_trained(key("a"), 1, answer=StoredAnswer(7, odd[0], odd), cut_gradient=StoredFile("000000009.upload", 99))
    ledger.upload_trained(key("b"), 0, answer=StoredAnswer(6, None, None), cut_gradient=None)
    ledger.member_dropped(FIRST, "ü", "went silent")
    ledger.update_accepted(
        FIRST, "a", sha256="update digest", payload=StoredFile("000000010.upload", 5), statistics=STATISTICS, log_bytes=b"\x00log\xff"
    )
    ledger.update_accepted(FIRST, "b", sha256="other digest", payload=None, statistics=STATISTICS, log_bytes=None)
    ledger.round_closing(FIRST, ("a", "b"))
    (attempt,) = ledger.attempts()
    assert (attempt.round, attempt.inputs_sha256, attempt.outcome, attempt.submitted) == (FIRST, "inputs", "closing", ("a", "b"))
    assert list(attempt.cohort.items()) == list(cohort.items()) and attempt.dropped == {"ü": "went silent"}
    assert [upload.key.client_id for upload in attempt.uploads] == ["b", "a", "ü"], "in the order of acceptance"
    b, a, left = attempt.uploads
    assert (b.position, b.answer, b.cut_gradient) == (0, StoredAnswer(6, None, None), None)
    assert a.answer is not None and a.answer.probe_losses is not None and a.answer.loss is not None
    assert bits((a.answer.loss, *a.answer.probe_losses)) == bits((odd[0], *odd))
    assert (a.position, a.answer.server_version, a.cut_gradient) == (1, 7, StoredFile("000000009.upload", 99))
    assert (left.state, left.position, left.answer, left.payload) == ("accepted", None, None, file(2))
    assert [(u.client_id, u.payload, u.statistics, u.log) for u in attempt.updates] == [
        ("a", StoredFile("000000010.upload", 5), STATISTICS, b"\x00log\xff"),
        ("b", None, STATISTICS, None),
    ]
    assert attempt.files() == {file(0).name, file(1).name, file(2).name, "000000009.upload", "000000010.upload"}
    ledger.payload_forgotten(key("a"))
    ledger.gradient_forgotten(key("a"))
    assert ledger.attempts()[0].files() == {file(0).name, file(2).name, "000000010.upload"}


def test_what_a_checkpoint_does_not_cover_waits_again_and_keeps_its_answer(ledger: Ledger) -> None:
    # Trained again it may have another place, and one that it had before must not count as covered by a later checkpoint.
    ledger.round_opened(FIRST, {}, "inputs")
    accept(ledger, key(step=0), key(step=1), key(step=2))
    answer = StoredAnswer(4, 0.5, (0.25,))
    ledger.upload_trained(key(step=0), 0, answer=answer, cut_gradient=None)
    ledger.upload_trained(key(step=1), 1, answer=answer, cut_gradient=None)
    ledger.upload_rejected(key(step=2), 2, "its norm")
    ledger.gone_on_with(FIRST, covered=1)
    uploads = ledger.attempts()[0].uploads
    assert [u.payload.name is None for u in uploads] == [True, False, False], "a checkpoint has what it covers"
    assert [(u.state, u.position, u.answer) for u in uploads] == [
        ("trained", 0, answer),
        ("accepted", None, answer),
        ("accepted", None, None),
    ]
    assert ledger._first("SELECT count(*) FROM rejections") == 0
    assert ledger.balance().waiting == 2


def test_who_is_there_is_known_with_the_digest_of_its_newest_key(ledger: Ledger) -> None:
    ledger.joined("a", "first key")
    ledger.joined("b", "key of b")
    ledger.departed("a")
    ledger.departed("nobody")
    assert ledger.present_clients() == {"b": "key of b"}
    ledger.joined("a", "second key")
    assert ledger.present_clients() == {"a": "second key", "b": "key of b"}


def test_quarantines_last(tmp_path: Path, ledger: Ledger) -> None:
    ledger.quarantined("a", 3, "its losses are not those of its activations")
    ledger.sync()
    with_disk = reopened(tmp_path)
    assert with_disk.quarantines() == {"a": "its losses are not those of its activations"}
    with_disk.close()
