"""Frozen weights: written as a blob, mapped by the client, read by programs in place; damage is found and mended."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from heron_client.network.blob_fetcher import BlobFetcher
from heron_client.network.downloads import Download
from heron_client.state_directory import has_digest
from heron_client.training.base import MappedBase
from heron_client.training.parameters import LocalParameters
from heron_client.training.run_loader import RunLoader
from heron_client.training.runtime import Program
from heron_common.errors import ConfigurationError, ProgramError
from heron_common.numerics.base_layout import ALIGNMENT, base_layout
from heron_common.numerics.tensors import DType, TensorSpec
from heron_common.protocol.messages import Membership
from heron_common.specification.model_spec import BlobReference, ProgramKind, ProgramReference
from heron_server.models.base import BaseStorage, frozen_tensors, round_to_storage, widened, write_base
from heron_server.models.split_model import flat_parameters, predict
from heron_server.programs.compile import compile_function
from heron_server.programs.export import export
from heron_server.publication import write_frozen_weights
from tests.harness.transformers import build, next_token


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    module.requires_grad_(False)
    return module


@pytest.mark.parametrize("storage", list(BaseStorage))
def test_a_mapped_base_holds_what_was_stored(storage: BaseStorage, tmp_path: Path) -> None:
    module = layers()
    round_to_storage([module], storage)
    tensors = frozen_tensors([module, module[1]], storage)
    assert len(tensors) == 4
    reference = write_base(tensors, tmp_path)
    path = tmp_path / reference.sha256
    assert path.stat().st_size == reference.size_bytes and has_digest(path, reference)
    specs = tuple(t.spec for t in tensors)
    mapped = MappedBase(path, specs)
    assert all(region.offset % ALIGNMENT == 0 for region in base_layout(specs).regions)
    for index, tensor in enumerate(tensors):
        assert torch.equal(widened(tensor.stored), tensor.value)
        if tensor.spec.dtype is DType.BFLOAT16:
            continue
        array = mapped.values[f"base.{index}"].numpy()
        assert np.array_equal(array, tensor.stored[0].numpy())


def test_the_runtime_reads_the_mapping_in_place(tmp_path: Path) -> None:
    reference = write_base(frozen_tensors([layers()], BaseStorage.FLOAT32), tmp_path)
    specs = (TensorSpec("0.weight", DType.FLOAT32, (5, 7)),)
    path = tmp_path / "first"
    path.write_bytes((tmp_path / reference.sha256).read_bytes()[: base_layout(specs).total_bytes])
    mapped = MappedBase(path, specs)
    value = mapped.values["base.0"]
    assert isinstance(value, onnxruntime.OrtValue)
    before = value.numpy()[0, 0]
    mapped._kept[0][0, 0] = before + 1
    assert value.numpy()[0, 0] == before + 1
    # Copy on write: what programs see may never reach the file.
    assert np.frombuffer(path.read_bytes(), "<f4")[0] == before


def test_a_base_of_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(bytes(10))
    with pytest.raises(ProgramError, match=r"take 140 bytes, but .* has 10: delete the file and start again"):
        MappedBase(tmp_path / "base", (TensorSpec("w", DType.FLOAT32, (5, 7)),))
    with pytest.raises(ProgramError, match="names no blob that holds them"):
        MappedBase(None, (TensorSpec("w", DType.FLOAT32, (5, 7)),))


@pytest.mark.parametrize("base", ["float32", "bfloat16", "int8"])
def test_a_clients_program_over_a_mapped_base_equals_the_model(base: str, tmp_path: Path) -> None:
    data = next_token(6)
    model = build(tmp_path, "gpt2", data, base=base)
    reference = write_base(model.frozen, tmp_path)
    spec = model.to_spec()
    parameters = LocalParameters(spec)
    parameters.theta[:] = np.concatenate([flat_parameters(model.front), flat_parameters(model.auxiliary_head)])
    parameters.show_base()
    program_bytes = export(compile_function(model, ProgramKind.LOSS, micro_batch=2))
    blob = BlobReference(hashlib.sha256(program_bytes).hexdigest(), len(program_bytes))
    mapped = MappedBase(tmp_path / reference.sha256, spec.base)
    program = Program(
        ProgramReference(ProgramKind.LOSS, blob, micro_batch=2),
        program_bytes,
        model=spec,
        parameters=parameters,
        specification=model.completed(data),
        threads=1,
        base=mapped,
    )
    x, y = model.random_batch(2, np.random.Generator(np.random.Philox(key=9)))
    program.run(x, y)
    with torch.no_grad():
        z = model.front(torch.from_numpy(x))
        losses = model.sample_losses(predict(model.auxiliary_head, z, model.mask(torch.from_numpy(x))), torch.from_numpy(y))
    np.testing.assert_allclose(program.activations, z.numpy(), atol=1e-5)
    np.testing.assert_allclose(program.losses, losses.numpy(), rtol=1e-5)


def test_a_run_goes_on_only_with_the_frozen_weights_that_it_began_with(tmp_path: Path) -> None:
    data = next_token(6)
    blobs = tmp_path / "blobs"
    first = write_frozen_weights(build(tmp_path, "gpt2", data), blobs, resumes=False)
    assert first is not None and write_frozen_weights(build(tmp_path, "gpt2", data), blobs, resumes=True) == first
    other = build(tmp_path, "gpt2", data, base="int8")
    with pytest.raises(ConfigurationError, match="not those that this run began with: give the same model folder"):
        write_frozen_weights(other, blobs, resumes=True)
    assert [path.name for path in blobs.iterdir()] == [first.sha256]
    # A start that failed before its run began must not stand in the way of the next one.
    second = write_frozen_weights(other, blobs, resumes=False)
    assert second is not None and [path.name for path in blobs.iterdir()] == [second.sha256]


class KeptBlobs:
    """A client's state as far as large blobs go."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def large_blob_path(self, blob: BlobReference) -> Path:
        return self._path


def test_frozen_weights_that_were_damaged_on_the_device_are_fetched_again(tmp_path: Path) -> None:
    content, path = b"frozen weights", tmp_path / "kept"
    blob = BlobReference(hashlib.sha256(content).hexdigest(), len(content))
    fetched: list[str] = []

    def fetch(download: Download, kind: str) -> None:
        fetched.append(kind)
        download.take(content)
        download.finish()

    loader = RunLoader(BlobFetcher(fetch), KeptBlobs(path), clock=None, give_memory_back=lambda: None)  # type: ignore[arg-type]
    membership = Membership(
        "run",
        "session",
        run_seed=0,
        data_specification=next_token(6),
        model=None,
        programs=(),
        heartbeat_seconds=1.0,
        num_rounds=1,
        base=blob,
    )  # type: ignore[arg-type]
    for before, fetches in ((None, 1), (content, 1), (content[:-1] + b"?", 2), (b"", 3)):
        if before is not None:
            path.write_bytes(before)
        assert loader._base_file(membership) == path
        assert path.read_bytes() == content and len(fetched) == fetches
