"""Random lives of a run, crashes included, against a dictionary of what was acknowledged: nothing acknowledged is lost, and nothing is trained twice."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from heron_common.algorithm.algorithm import ServerSchedule
from heron_common.ids import RoundReference
from heron_common.protocol.messages import PeakMemory, UploadKey, UploadPurpose
from heron_server.rounds.state import WithoutQuorum
from heron_server.storage.spool import SpoolEntry
from tests.server.rounds.restartable_run import DEADLINE, LIVENESS, LOCAL_STEPS, RunShape
from tests.server.rounds.run_devices import DEVICES
from tests.server.rounds.run_life import Life

HELD_OUT_BATCHES = 1
SHAPES = [
    RunShape(clients=3, evaluation_batches=HELD_OUT_BATCHES),
    RunShape(schedule=ServerSchedule.LOCKSTEP, min_updates=2, evaluation_batches=HELD_OUT_BATCHES),
    RunShape(schedule=ServerSchedule.SHUFFLED, spool_bytes=300),
    RunShape("heron-server-loss", min_updates=2, without_quorum=WithoutQuorum.SKIP, spool_bytes=800),
    RunShape("sflv2", ServerSchedule.SEQUENTIAL, spool_bytes=300),
    RunShape("ho-sfl", min_updates=2, spool_bytes=500),
]


class RunLife(Life, RuleBasedStateMachine):
    seen: ClassVar[Counter[str]] = Counter()
    """What all lives had together, for those who want to know whether anything happened in them."""

    @initialize(shape=st.sampled_from(SHAPES))
    def begin(self, shape: RunShape) -> None:
        self.start(shape)

    def teardown(self) -> None:
        if hasattr(self, "run"):
            self.seen.update(lives=1, crashes=self.crashes, rounds=len(self.run.trainer.rounds), uploads=len(self.known.uploads))
        self.end()

    # ---- what devices do ----------------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(DEVICES), leaves=st.booleans())
    def leave_or_join_again(self, name: str, leaves: bool) -> None:
        device = self.devices[name]
        if leaves:
            self.call(lambda: self.run.owner.leave(self.record(device), "", PeakMemory()))
        else:
            self.join(name)

    @rule(name=st.sampled_from(DEVICES), steps=st.integers(1, 4))
    def go_on(self, name: str, steps: int) -> None:
        self.take_steps(self.devices[name], steps)

    @rule(names=st.sampled_from((("a", "b"), DEVICES)), in_turn=st.booleans(), rounds=st.integers(1, 2))
    def do_rounds(self, names: tuple[str, ...], in_turn: bool, rounds: int) -> None:
        """Several devices go on to the end of their round, in turn or one after the other."""
        for _ in range(rounds * (5 if in_turn else 2)):
            for name in names:
                self.take_steps(self.devices[name], 1 if in_turn else 4)
            self.work(40)

    @rule(name=st.sampled_from(DEVICES))
    def begin_the_round_again(self, name: str) -> None:
        """A device that lost its state sends everything once more."""
        device = self.devices[name]
        device.next_step = 0
        self.take_steps(device, 4)

    @precondition(lambda self: any(device.assignment for device in self.devices.values()))
    @rule(data=st.data(), step=st.integers(0, LOCAL_STEPS - 1), variant=st.sampled_from((0, 0, 0, 1)), evaluates=st.booleans())
    def send_anything(self, data: st.DataObject, step: int, variant: int, evaluates: bool) -> None:
        """Repeated, early, late, out of order, of a round that is over, or with other bytes."""
        device = self.devices[data.draw(st.sampled_from(sorted(name for name, d in self.devices.items() if d.assignment)))]
        self.send_upload(device, UploadPurpose.EVALUATE if evaluates else self.purpose(device), 0 if evaluates else step, variant)

    @precondition(lambda self: any(device.assignment for device in self.devices.values()))
    @rule(data=st.data(), variant=st.sampled_from((0, 0, 1)))
    def send_update_again(self, data: st.DataObject, variant: int) -> None:
        device = self.devices[data.draw(st.sampled_from(sorted(name for name, d in self.devices.items() if d.assignment)))]
        self.send_update(device, variant)

    # ---- what the server does ---------------------------------------------------------------------------------------------------

    @rule(jobs=st.sampled_from((1, 2, 3, 40)))
    def work(self, jobs: int) -> None:
        self.do_jobs(jobs)

    @rule()
    def save_inside_round(self) -> None:
        self.run.save_inside_round()

    @rule(seconds=st.sampled_from((1.0, LIVENESS / 2, LIVENESS + 1, DEADLINE + 1)), heard=st.booleans())
    def time_passes(self, seconds: float, heard: bool) -> None:
        """With `heard`, members at work are heard of meanwhile, so that only the deadline passes."""
        while seconds > 0:
            self.clock.advance(min(seconds, LIVENESS / 2))
            seconds -= LIVENESS / 2
            for device in self.devices.values():
                if heard and self.is_at_work(device):
                    self.record(device)
            self.run.owner.tick()
            self.note_ends()

    # A round that is skipped while no checkpoint can be written is tried again after a crash, and later ones with it: see docs/reliability-memory.md.
    @precondition(lambda self: self.shape.without_quorum is WithoutQuorum.REPEAT)
    @rule(what=st.sampled_from(("nothing", "checkpoints", "anything")))
    def the_disk_refuses(self, what: str) -> None:
        self.disk.refuses, self.disk.refuses_checkpoints = what == "anything", what != "nothing"

    # ---- crashes ------------------------------------------------------------------------------------------------------------------

    @rule(drains=st.booleans())
    def crash_or_drain(self, drains: bool) -> None:
        self.note_ends()
        if drains:
            self.disk.refuses = False
            self.run.owner.drain()
            while self.run.work():
                pass
            self.run.ledger.sync()
        self.crash()

    @rule(name=st.sampled_from(DEVICES), hit=st.integers(0, 11), works=st.booleans())
    def crash_inside(self, name: str, hit: int, works: bool) -> None:
        """Die at one of the places where something was just done, or is about to be: in a device's calls, or in the trainer's jobs."""

        def trainer_works() -> None:
            self.do_jobs(6)
            self.run.save_inside_round()

        self.crash_during(trainer_works if works else lambda: self.take_steps(self.devices[name], 2), hit)

    # ---- what always holds --------------------------------------------------------------------------------------------------------

    @invariant()
    def everything_acknowledged_is_trained_exactly_once(self) -> None:
        trainer = self.run.trainer
        keys = [tuple(entry[:4]) for entry in trainer.lineage]
        assert len(set(keys)) == len(keys), "an upload was trained twice"
        trained = {tuple(entry[:4]): entry[4] for entry in trainer.lineage}
        accepted = {(*key.round, key.client_id, key.local_step): digest for key, digest in self.accepted.items() if _trains(key)}
        assert trained.items() <= accepted.items(), "something was trained that is not among what came"
        for round_index, attempt, taken, _ in trainer.rounds:
            if taken is None:
                continue
            reference = RoundReference(round_index, attempt)
            wanted = {(*k.round, k.client_id, k.local_step) for k in self.known.uploads if _trains(k) and k.round == reference}
            assert wanted <= trained.keys(), "an acknowledged upload of a closed round was not trained"
            updates = {name: digest for (of, name), digest in self.known.updates.items() if of == reference}
            assert updates.items() <= dict(taken).items(), "an acknowledged update of a closed round does not count"
            decided = self.closed.get(round_index, (reference, sorted(name for name, _ in taken)))
            assert decided == (reference, sorted(name for name, _ in taken)), "a round was closed otherwise than decided"

    @invariant()
    def rounds_follow_each_other(self) -> None:
        assert [entry[0] for entry in self.run.trainer.rounds] == list(range(len(self.run.trainer.rounds)))

    @invariant()
    def training_again_gives_what_was_told(self) -> None:
        """A trainer's answer depends on everything that was trained before, in its order."""
        assert self.run.replay_mismatches == 0

    @invariant()
    def an_attempt_has_one_number_and_one_cohort(self) -> None:
        attempt = self.run.state.attempt
        if attempt is not None:
            reference = attempt.assignment.round
            told = [r for r in self.known.cohorts if r.round_index == reference.round_index]
            assert all(reference >= r for r in told), "numbers of attempts never go back"
            assert self.known.cohorts.get(reference, attempt.cohort) == attempt.cohort

    @invariant()
    def the_spool_holds_what_is_needed(self) -> None:
        run = self.run.state
        held = [entry for attempt in ([run.attempt] if run.attempt else []) + run._unsettled for entry in attempt.entries()]
        later = {name for attempt in run.recorded for name in attempt.files()}
        if not self.disk.refuses:
            # As the thread does that tidies up, which had nothing to do while the disk refused.
            run.outbox.delete_given_up()
        given_up = [payload for _, payload in run.outbox._deletions if isinstance(payload, SpoolEntry)]
        # Payloads go after the entries that give them up, so while the ledger cannot be written they stay.
        assert self.disk.refuses or not given_up
        names = {entry.path.name: entry.size_bytes for entry in [*held, *given_up]}
        assert {name: size for name, size in self.run.files.items() if name not in later} == names
        assert self.run.spool.used_bytes == sum(names.values())

    @rule()
    def open_the_books(self) -> None:
        """The ledger's own account, and the files that it names."""
        self.disk.refuses = False
        # As the thread does that tidies up, which had nothing to do while the disk refused.
        self.run.state.outbox.delete_given_up()
        run, balance = self.run.state, self.run.ledger.balance()
        self.note_committed()
        assert balance.accepted == len(self.accepted)
        # A restart sets what no checkpoint covers back to accepted: it waits to be trained again, though its answer is kept and stands.
        waiting = {upload.key for upload in (run.attempt._all_uploads() if run.attempt else []) if not upload.trained}
        later = {attempt.round for attempt in run.recorded}
        written = {u.key for attempt in self.run.ledger.attempts() for u in attempt.uploads if u.state == "accepted"}
        assert {key for key in written if key.round not in later} == waiting, "the ledger has something waiting that nobody will train"
        assert balance.waiting == len(written), "something acknowledged is neither trained nor scored nor rejected, and its round is over"
        assert {name for attempt in self.run.ledger.attempts() for name in attempt.files()} == set(self.run.files)


def _trains(key: UploadKey) -> bool:
    return key.purpose is not UploadPurpose.EVALUATE


QUICK = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def live(many: settings) -> None:
    """Draw so many lives; `pytest -s` shows what they had. Lives in which nothing happens would prove nothing."""
    RunLife.seen.clear()
    run_state_machine_as_test(RunLife, settings=many)
    seen = RunLife.seen
    print(", ".join(f"{count} {what}" for what, count in seen.items()))
    assert seen["lives"] >= many.max_examples and min(seen["crashes"], seen["rounds"], seen["uploads"]) >= seen["lives"]


@pytest.mark.seconds
def test_nothing_acknowledged_is_lost_and_nothing_trained_twice() -> None:
    live(QUICK)


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_in_many_more_lives() -> None:
    live(settings(QUICK, max_examples=2000, stateful_step_count=60))
