"""Pickles that would run something: wherever a file with one inside is opened, it is refused and nothing runs."""

from __future__ import annotations

import contextlib
import gzip
import io
import pickle
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from heron_common.data.sources import open_source
from heron_common.errors import ConfigurationError, DataError, HeronError
from heron_server.models.transformer.pretrained import load_pretrained
from tests.fuzz.decoders import DECODERS, FOREIGN_FAILURES
from tests.fuzz.seeds import all_seeds
from tests.harness.transformers import next_token, write_configuration


class Gadget:
    """Writes a file as soon as it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.write_text, (self.trace, "ran")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


def gadgets(trace: Path) -> list[bytes]:
    """Return pickles of every protocol that would run it, bare and inside of what a reader expects."""
    inside = {b"data": Gadget(trace), b"labels": [1]}
    return [pickle.dumps(value, protocol) for value in (Gadget(trace), inside, [Gadget(trace)]) for protocol in range(6)]


def test_the_gadget_does_run_where_it_is_let(trace: Path) -> None:
    pickle.loads(gadgets(trace)[0])
    assert trace.read_text() == "ran"


def test_no_decoder_unpickles_what_comes(trace: Path) -> None:
    for name, seed in all_seeds().items():
        for gadget in gadgets(trace):
            for data in (gadget, seed + gadget):
                with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(HeronError, *FOREIGN_FAILURES):
                    DECODERS[name](data)
                assert not trace.exists(), name


def test_arrays_of_objects_are_refused(trace: Path, tmp_path: Path) -> None:
    objects = np.empty(3, object)
    objects[:] = [Gadget(trace)] * 3
    np.savez(tmp_path / "objects.npz", x=objects.reshape(3, 1), y=np.arange(3))
    (tmp_path / "plain.npz").write_bytes(gadgets(trace)[3])
    with zipfile.ZipFile(tmp_path / "renamed.npz", "w") as archive:
        for name in ("x.npy", "y.npy", "x.pkl"):
            archive.writestr(name, gadgets(trace)[3])
    for path in tmp_path.glob("*.npz"):
        with pytest.raises(HeronError):
            open_source(f"npz:{path}").inputs.read(np.arange(1))
    assert not trace.exists()


def test_published_archives_with_other_pickles_in_them_are_refused(trace: Path, tmp_path: Path) -> None:
    for gadget in gadgets(trace):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            member = tarfile.TarInfo("cifar-10-batches-py/test_batch")
            member.size = len(gadget)
            archive.addfile(member, io.BytesIO(gadget))
        (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(packed.getvalue()))
        with pytest.raises(HeronError):
            open_source(f"cifar-10:test:{tmp_path}")
    assert not trace.exists()


def test_a_checkpoint_that_torch_would_unpickle_is_refused(trace: Path) -> None:
    saved = io.BytesIO()
    torch.save({"w": Gadget(trace)}, saved)
    with pytest.raises(HeronError, match="damaged"):
        DECODERS["checkpoint"](saved.getvalue())
    assert not trace.exists()


def test_weights_of_a_transformer_that_would_be_unpickled_are_refused(trace: Path, tmp_path: Path) -> None:
    folder = write_configuration("gpt2", tmp_path)
    torch.save({"wte.weight": Gadget(trace)}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match=r"model\.safetensors"):
        load_pretrained(str(folder), next_token(8), random_weights=False)
    assert not trace.exists()


def test_a_pickle_that_claims_gigabytes_takes_none(tmp_path: Path) -> None:
    claims = [
        b"\x80\x04\x8e" + (1 << 35).to_bytes(8, "little") + b"abc",
        b"\x80\x04]r\xff\xff\xff\x7f.",
        b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f.",
    ]
    tracemalloc.start()
    try:
        for claim in claims:
            (tmp_path / "test_batch").write_bytes(claim)
            with pytest.raises(DataError):
                open_source(f"cifar-10:test:{tmp_path}")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
