"""Checkpoints: bit-equal round trips, and damage or a full disk never costs more than the newest one."""

from __future__ import annotations

import logging
import resource
from pathlib import Path

import pytest
import torch

from heron_common.errors import CheckpointError
from heron_server.storage.checkpoint import Checkpoint, CheckpointStore


def checkpoint(rounds: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(rounds)
    tensors = {
        "front.weight": torch.randn(5, 3, generator=generator),
        "optimiser.back.0.step": torch.tensor(float(rounds)),
        "transposed": torch.randn(4, 2, generator=generator).t(),
    }
    return Checkpoint(rounds, tensors, {"server_version": rounds, "rounds": [{"x": 0.1}], "name": "ü", "none": None})


def written(directory: Path, *rounds: int, keep: int = 3) -> CheckpointStore:
    store = CheckpointStore(directory, keep)
    for number in rounds:
        store.write(checkpoint(number))
    return store


def assert_equal(got: Checkpoint, want: Checkpoint) -> None:
    assert (got.completed_rounds, got.state) == (want.completed_rounds, want.state)
    assert got.tensors.keys() == want.tensors.keys()
    for name, tensor in want.tensors.items():
        assert got.tensors[name].dtype == tensor.dtype and torch.equal(got.tensors[name], tensor)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    written(tmp_path, 1, 2)
    assert_equal(CheckpointStore(tmp_path, 3).read_newest(), checkpoint(2))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_keep_checkpoints_are_kept(tmp_path: Path, keep: int) -> None:
    store = written(tmp_path, *range(6), keep=keep)
    kept = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert kept == [store.path_of(number).name for number in range(6 - keep, 6)]


def test_what_killed_processes_left_goes_with_the_next_checkpoint_and_nothing_else_does(tmp_path: Path) -> None:
    # One was killed while it wrote, one after it had listed the new checkpoint and before it removed the oldest.
    store = written(tmp_path, 1, 2, 3)
    store.path_of(0).write_bytes(b"listed no more")
    (tmp_path / ".round-000004.safetensors.77.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    store.write(checkpoint(4))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.json",
        "notes.txt",
        *(store.path_of(number).name for number in (2, 3, 4)),
    ]


def test_a_checkpoint_inside_a_round_replaces_the_one_before_and_goes_with_the_next_boundary(tmp_path: Path) -> None:
    store = written(tmp_path, 1)
    store.write_open(checkpoint(1), 3)
    store.write_open(Checkpoint(1, {"x": torch.ones(2)}, {"positions": 5}), 5)
    found = store.read_open()
    assert found is not None and found.state == {"positions": 5} and len(list(tmp_path.glob("open-*.safetensors"))) == 1
    assert_equal(store.read_newest(), checkpoint(1))
    store.write(checkpoint(2))
    assert store.read_open() is None and list(tmp_path.glob("open*")) == []


def test_a_damaged_checkpoint_inside_a_round_is_none_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = written(tmp_path, 1)
    store.write_open(checkpoint(1), 3)
    (path,) = tmp_path.glob("open-*.safetensors")
    damage_flip(path)
    with caplog.at_level(logging.WARNING):
        assert store.read_open() is None
    assert "a checkpoint is damaged" in caplog.text


def test_writing_the_same_round_again_replaces_it(tmp_path: Path) -> None:
    store = written(tmp_path, 0, 1)
    again = Checkpoint(1, {"other": torch.ones(2)}, {"server_version": 9})
    store.write(again)
    assert_equal(store.read_newest(), again)


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 0x10
    path.write_bytes(bytes(data))


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    store = written(tmp_path, 1, 2)
    damage(store.path_of(2))  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        assert_equal(store.read_newest(), checkpoint(1))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and getattr(record, "path", "") == str(store.path_of(2))


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    store = written(tmp_path, 1, 2)
    path = store.path_of(2)
    good = path.read_bytes()
    for position in range(0, len(good), 7):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        assert store.read_newest().completed_rounds == 1
    path.write_bytes(good)
    assert store.read_newest().completed_rounds == 2


def test_no_usable_checkpoint_is_an_error_that_names_the_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        CheckpointStore(tmp_path, 3).read_newest()
    store = written(tmp_path, 1, 2)
    for number in (1, 2):
        damage_truncate(store.path_of(number))
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        store.read_newest()


def test_a_damaged_manifest_is_a_checkpoint_error_or_does_no_harm(tmp_path: Path) -> None:
    store = written(tmp_path, 1, 2)
    manifest = tmp_path / "manifest.json"
    good = manifest.read_bytes()
    surprises = set()
    for position in range(len(good)):
        manifest.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        try:
            assert store.read_newest().state["server_version"] in (1, 2)
        except CheckpointError:
            pass
        except Exception as exc:
            surprises.add(type(exc).__name__)
    assert surprises == set()


def test_a_disk_that_refuses_is_an_error_and_the_checkpoint_before_stands(tmp_path: Path) -> None:
    store = written(tmp_path, 1)
    files = sorted(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="free some space"):
            store.write(checkpoint(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_equal(store.read_newest(), checkpoint(1))
    assert sorted(tmp_path.iterdir()) == files, "nothing half-written is left"
    store.write(checkpoint(2))
    assert_equal(store.read_newest(), checkpoint(2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("inside", [False, True])
def test_what_is_not_finite_is_never_written(tmp_path: Path, bad: float, inside: bool) -> None:
    store = written(tmp_path, 1)
    good = checkpoint(2)
    ill = Checkpoint(2, good.tensors | {"optimiser.back.0.exp_avg_sq": torch.tensor([1.0, bad])}, good.state)
    with pytest.raises(CheckpointError, match=r"'optimiser\.back\.0\.exp_avg_sq' was expected to be finite"):
        _ = store.write_open(ill, 3) if inside else store.write(ill)
    assert_equal(CheckpointStore(tmp_path, 3).read_newest(), checkpoint(1))
    assert store.read_open() is None


def test_a_models_own_mask_may_hold_infinity(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, 3, infinite=frozenset({"back.mask"}))
    good = checkpoint(1)
    masked = Checkpoint(1, good.tensors | {"back.mask": torch.full((2, 2), -torch.inf)}, good.state)
    store.write(masked)
    assert_equal(store.read_newest(), masked)


@pytest.mark.parametrize("keep", [1, 2])
def test_the_best_is_kept_beside_the_newest_until_another_is_better(tmp_path: Path, keep: int) -> None:
    store = CheckpointStore(tmp_path, keep, keep_first=True)
    for number in range(6):
        store.write(checkpoint(number), best=None if number < 2 else 1)
    assert store.best() == 1 and store.has(1) and not store.has(2)
    assert_equal(CheckpointStore(tmp_path, 1).read(store.best()), checkpoint(1))
    assert sorted(path.name for path in tmp_path.glob("round-*")) == [store.path_of(n).name for n in (0, 1, *range(6 - keep, 6))]
    store.write(checkpoint(6), best=5)
    assert store.best() == 5 and not store.has(1)
