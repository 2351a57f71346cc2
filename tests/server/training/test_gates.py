"""Gates as pure pieces: what is an outlier, what is clipped, who is set apart and for how long, and that a replay judges alike."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heron_server.training.gates import MIN_UPLOADS, Gate, GateReason, GateSettings, Verdict

SETTINGS = GateSettings(
    norm_factor=10.0, loss_factor=2.0, gradient_factor=4.0, gate_warmup_uploads=32, quarantine_after=3, quarantine_rounds=2
)
HONEST = ("a", "b", "c", "d")


def offer(gate: Gate, client: str, norm: float = 1.0, loss: float = 1.0, gradient: float = 1.0, round_index: int = 0) -> Verdict:
    """Let an upload through the gates as a server step does."""
    for verdict in (gate.judge_norm(client, round_index, norm), gate.judge_loss(client, round_index, loss)):
        if not verdict.accepted:
            return verdict
    gate.accept(client, norm, server_loss=loss, gradient_norm=gradient)
    return Verdict()


def warm(of: GateSettings = SETTINGS, clients: tuple[str, ...] = HONEST, **figures: float) -> Gate:
    gate = Gate(of)
    for _ in range(max(MIN_UPLOADS, of.gate_warmup_uploads // len(clients))):
        for client in clients:
            assert offer(gate, client, **figures).accepted
    return gate


def test_before_enough_uploads_of_enough_clients_nothing_is_refused() -> None:
    gate = Gate(SETTINGS)
    for _ in range(MIN_UPLOADS - 1):
        for client in HONEST:
            assert offer(gate, client).accepted
    assert offer(gate, "a", norm=1e6).accepted
    assert gate.limit_gradient() == math.inf
    few = warm(clients=("a", "b"))
    assert offer(few, "a", norm=1e6, loss=1e6).accepted, "of two nobody can say which is the poisoned one"


@pytest.mark.parametrize(("norm", "passes"), [(10.0, True), (10.1, False), (0.1, True), (0.099, False), (0.0, False), (1e30, False)])
def test_a_norm_beyond_the_factor_is_refused_on_both_sides(norm: float, passes: bool) -> None:
    verdict = offer(warm(), "b", norm=norm)
    assert verdict.accepted is passes
    if not passes:
        assert (verdict.reason, verdict.measured) == (GateReason.ACTIVATION_NORM, norm)
        assert verdict.limit in (10.0, 0.1)


@pytest.mark.parametrize(("loss", "passes"), [(2.0, True), (2.01, False), (0.0, True)])
def test_a_loss_beyond_the_factor_is_refused_and_a_low_one_never(loss: float, passes: bool) -> None:
    assert offer(warm(), "b", loss=loss).accepted is passes


def test_once_everything_is_easy_the_limit_stays_at_what_losses_were_at_first() -> None:
    gate = warm()
    for _ in range(40):
        for client in HONEST:
            offer(gate, client, loss=0.001)
    assert offer(gate, "a", loss=1.0).accepted, "2 times half of the first losses"
    assert not offer(gate, "a", loss=1.001).accepted


def test_a_client_is_judged_by_its_losses_only_after_a_hearing() -> None:
    gate = warm()
    for _ in range(MIN_UPLOADS):
        assert offer(gate, "new", loss=50.0).accepted
    assert offer(gate, "new", loss=50.0).reason is GateReason.SERVER_LOSS
    assert offer(gate, "newer", norm=50.0).reason is GateReason.ACTIVATION_NORM, "norms are judged at once"


def test_a_minority_cannot_move_the_reference_however_much_it_sends() -> None:
    gate = warm()
    for _ in range(1000):
        offer(gate, "a", norm=9.9, loss=1.9, gradient=1e9)
    assert offer(gate, "b", norm=10.1).reason is GateReason.ACTIVATION_NORM
    assert gate.limit_gradient() == 4.0


def test_the_reference_follows_what_all_send() -> None:
    gate = warm()
    for size in (3.0, 9.0, 27.0, 81.0):
        for _ in range(40):
            for client in HONEST:
                assert offer(gate, client, norm=size).accepted
    assert offer(gate, "a", norm=1.0).reason is GateReason.ACTIVATION_NORM


def test_each_strike_counts_and_an_accepted_upload_takes_one_back() -> None:
    gate = warm()
    for _ in range(10):
        assert not offer(gate, "a", norm=100.0).quarantines
        assert not offer(gate, "a", norm=100.0).quarantines
        offer(gate, "a")
        offer(gate, "a")
    assert [offer(gate, "a", norm=100.0).quarantines for _ in range(3)] == [False, False, True]


def test_a_client_is_set_apart_for_its_rounds_and_twice_as_long_the_next_time() -> None:
    gate = warm()
    lengths = []
    round_index = 5
    for _ in range(3):
        while not offer(gate, "a", norm=100.0, round_index=round_index).quarantines:
            pass
        assert gate.quarantined(round_index) == ("a",)
        assert offer(gate, "a", round_index=round_index).reason is GateReason.QUARANTINED
        began = round_index
        while gate.is_quarantined("a", round_index):
            round_index += 1
        lengths.append(round_index - began - 1)
    assert lengths == [2, 4, 8]
    assert offer(gate, "a", round_index=round_index).accepted and offer(gate, "b", round_index=0).accepted


def test_an_operator_may_release_a_client() -> None:
    gate = warm()
    for _ in range(3):
        offer(gate, "a", norm=100.0)
    assert gate.is_quarantined("a", 0)
    gate.release("a")
    assert offer(gate, "a").accepted


def test_refusals_are_counted_by_client_and_reason() -> None:
    gate = warm()
    offer(gate, "a", norm=100.0)
    offer(gate, "b", loss=100.0)
    offer(gate, "a", norm=100.0)
    assert gate.refusals() == {"a": {"activation_norm": 2}, "b": {"server_loss": 1}}


def test_factors_of_zero_switch_each_gate_off() -> None:
    gate = warm(GateSettings(0.0, 0.0, gradient_factor=0.0, gate_warmup_uploads=32, quarantine_after=0, quarantine_rounds=2))
    assert offer(gate, "a", norm=1e30, loss=1e30).accepted
    assert gate.limit_gradient() == math.inf
    quiet = warm(GateSettings(10.0, 0.0, gradient_factor=0.0, gate_warmup_uploads=32, quarantine_after=0, quarantine_rounds=2))
    assert not any(offer(quiet, "a", norm=1e9).quarantines for _ in range(50))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 1 << 32), st.integers(0, 300))
def test_a_restored_state_judges_as_the_one_that_went_on(seed: int, cut: int) -> None:
    random = np.random.default_rng(seed)
    uploads = [
        (HONEST[int(random.integers(4))], *(float(v) for v in np.exp(random.standard_normal(3) * 1.5)), index // 40) for index in range(320)
    ]
    through, first = Gate(SETTINGS), Gate(SETTINGS)
    expected = [offer(through, *upload) for upload in uploads]
    for upload in uploads[:cut]:
        offer(first, *upload)
    saved = json.dumps(first.state(), allow_nan=False)
    for upload in uploads[cut:]:
        offer(first, *upload)
    second = Gate(SETTINGS)
    second.restore(json.loads(saved))
    assert json.dumps(second.state()) == saved
    assert [offer(second, *upload) for upload in uploads[cut:]] == expected[cut:]
    assert second.state() == first.state() == through.state()
    assert any(not verdict.accepted for verdict in expected)
