"""A run that is killed and comes back: a crash keeps the files and nothing else, and what was acknowledged has to be among them.

Where a crash is to come inside an action, the files are copied at that very point, and the run goes on from the copy.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

from heron_common.ids import RoundReference
from heron_common.protocol.messages import UploadKey, UploadPurpose
from heron_server.rounds import run_state, trainer_queue
from heron_server.storage import ledger, spool
from tests.conftest import DISCIPLINE
from tests.server.rounds.restartable_run import Disk, RestartableRun
from tests.server.rounds.run_devices import DrivenRun


@dataclass
class Snapshot:
    """The files of a run as a kill would leave them."""

    disk: Disk

    def restore(self, disk: Disk) -> None:
        shutil.rmtree(disk.directory)
        self.disk.directory.rename(disk.directory)
        disk.boundary, disk.inside = self.disk.boundary, self.disk.inside


class Life(DrivenRun):
    """A run through any number of crashes."""

    def __init__(self) -> None:
        super().__init__()
        self.snapshot: Snapshot | None = None
        self.crashes = 0

    # ---- what the server does -----------------------------------------------------------------------------------------------------

    def do_jobs(self, jobs: int) -> None:
        """Let the trainer do so many jobs, or as many as there are."""
        while jobs and self.run.work():
            self.note_ends()
            jobs -= 1

    # ---- crashes ------------------------------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """Kill the run between two calls, and start it again."""
        self.note_ends()
        self.run.kill()
        self.come_back()

    def crash_during(self, action: Callable[[], Any], hit: int) -> bool:
        """Kill the run at the `hit`-th crash point of an action, or after it if it has fewer, and start it again; returns whether it had as many."""
        self.note_ends()
        before = copy.deepcopy((self.known, self.devices, self.closed, self.undone))
        self.snapshot, left = None, [hit]

        def at(*_: Any, **__: Any) -> None:
            if left[0] == 0:
                self.snapshot = self.take_snapshot()
            left[0] -= 1

        with ExitStack() as patches:
            for module in (ledger, spool, run_state, trainer_queue):
                patches.enter_context(mock.patch.object(module, "crash_point", at))
            action()
        undone = self.undone
        self.run.kill()
        if self.snapshot is not None:
            # Nobody heard what was said after the crash.
            self.known, self.devices, self.closed, self.undone = before
            self.undone |= undone
            self.snapshot.restore(self.disk)
        self.come_back()
        return self.snapshot is not None

    def take_snapshot(self) -> Snapshot:
        directory = self.root / "copy"
        with DISCIPLINE.suspended():
            shutil.copytree(self.disk.directory, directory)
        return Snapshot(Disk(directory, False, False, dict(self.disk.boundary), dict(self.disk.inside)))

    def come_back(self) -> None:
        self.disk.refuses = self.disk.refuses_checkpoints = False
        self.run = RestartableRun(self.disk, self.shape, self.clock, resumes=True)
        self.crashes += 1
        self.forget_what_was_lost()
        self.open_attempts_go_on()

    def forget_what_was_lost(self) -> None:
        """Read from the ledger what survived, and hold it against what was acknowledged."""
        rows = self.run.ledger._connection.execute("SELECT round_index, attempt, client_id, purpose, local_step, sha256 FROM uploads")
        survived = {UploadKey(RoundReference(r, a), c, purpose=UploadPurpose(p), local_step=s): digest for r, a, c, p, s, digest in rows}
        settled = self.run.ledger._connection.execute("SELECT round_index, attempt, accepted FROM attempts WHERE settled = 1").fetchall()
        assert survived.items() <= self.accepted.items(), "the ledger has what never came"
        kept = dict(survived)
        for round_index, attempt, count in settled:
            # Entries are committed in the order of acceptance, and what is settled is counted only: a crash took the last ones.
            of_round = [key for key in self.accepted if key.round == RoundReference(round_index, attempt)]
            kept |= {key: self.accepted[key] for key in of_round[:count]}
        self.accepted = {key: digest for key, digest in self.accepted.items() if key in kept}
        assert self.known.uploads.items() <= self.accepted.items(), "an acknowledged upload was lost in a crash"

    def open_attempts_go_on(self) -> None:
        """What clients were told of and did not end goes on, with the same number and cohort, in the same order."""
        run = self.run.state
        going_on = {a.round: tuple(a.cohort) for a in run.recorded}
        if run.attempt is not None:
            going_on[run.attempt.assignment.round] = run.attempt.cohort
        for reference, cohort in self.known.cohorts.items():
            if reference.round_index >= len(self.run.trainer.rounds) and reference not in self.undone:
                newer = [r for r in self.known.cohorts if r.round_index == reference.round_index and r > reference]
                assert newer or going_on.get(reference) == cohort, f"{reference} does not go on after a crash"
