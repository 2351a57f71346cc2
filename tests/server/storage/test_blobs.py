"""Content-addressed blobs: programs stay, weights live for two rounds."""

from __future__ import annotations

import hashlib

from heron_server.storage.blobs import BlobStore


def test_a_blob_is_found_by_its_digest() -> None:
    store = BlobStore()
    reference = store.put(b"program")
    assert reference.sha256 == hashlib.sha256(b"program").hexdigest() and reference.size_bytes == len(b"program")
    assert store.get(reference.sha256) == b"program"
    assert store.get(hashlib.sha256(b"other").hexdigest()) is None
    assert store.get("") is None


def test_weights_are_kept_for_their_round_and_the_next_and_programs_for_good() -> None:
    store = BlobStore()
    program = store.put(b"program")
    references = [store.put_round([b"front%d" % n, b"head%d" % n]) for n in range(4)]
    held = [[store.get(r.sha256) is not None for r in pair] for pair in references]
    assert held == [[False, False], [False, False], [True, True], [True, True]]
    assert store.get(program.sha256) == b"program"


def test_weights_that_do_not_change_stay_available_round_after_round() -> None:
    store = BlobStore()
    for _ in range(5):
        (reference,) = store.put_round([b"frozen"])
        assert store.get(reference.sha256) == b"frozen"


def test_equal_weights_in_one_round_share_a_blob() -> None:
    first, second = BlobStore().put_round([b"same", b"same"])
    assert first == second
