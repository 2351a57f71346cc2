"""What a client fetches before it can train: programs, cached by digest, and the weights of a round."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_client.network.blob_fetcher import BlobFetcher
from heron_client.state_directory import ClientState, has_digest
from heron_client.training.base import MappedBase
from heron_client.training.local_training import HeldOutSamples, LocalContext, ReadBatch
from heron_client.training.parameters import LocalParameters
from heron_client.training.program_runs import ProgramRuns
from heron_client.training.programs import Programs
from heron_client.training.runtime import Program, check_reference
from heron_common.data.reading import SampleReader
from heron_common.data.shard_split import split_shard
from heron_common.errors import ProgramError, StorageError
from heron_common.numerics.tensors import Int64Array, raw_bytes
from heron_common.process.clock import Clock
from heron_common.protocol.messages import Assignment, Membership
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import BlobReference, ProgramReference

log = logging.getLogger(__name__)


class RunLoader:
    """Turns a membership into a context that can train, and an assignment into weights in its buffers."""

    def __init__(
        self,
        fetcher: BlobFetcher,
        state: ClientState,
        *,
        clock: Clock,
        give_memory_back: Callable[[], None],
        runs: ProgramRuns | None = None,
    ) -> None:
        self._fetcher = fetcher
        self._state = state
        self._clock = clock
        self._give_memory_back = give_memory_back
        self._runs = runs or ProgramRuns()

    def context(self, client_name: str, membership: Membership, *, reader: SampleReader, threads: int, arenas: bool) -> LocalContext:
        """Load every program of the run once over fresh buffers, and look at the length of every text.

        With `arenas` each program keeps the memory of its temporaries.

        Raises:
            ProgramError: a program is not what its reference says, or cannot be loaded on this device.

        """
        parameters, programs = self.programs(membership, threads, arenas)
        programs.load_each()
        split = split_shard(membership.run_seed, client_name, num_examples=reader.num_examples, fraction=membership.held_out)
        lengths = _lengths(reader)
        held_out = HeldOutSamples(
            _reader(reader, split.held_out),
            len(split.held_out),
            max_batches=membership.evaluation_batches,
            lengths=_some(lengths, split.held_out),
        )
        return LocalContext(
            client_name,
            membership.run_seed,
            model=membership.model,
            parameters=parameters,
            programs=programs,
            read_batch=_reader(reader, split.training),
            num_examples=len(split.training),
            clock=self._clock,
            held_out=held_out if held_out.num_examples else None,
            lengths=_some(lengths, split.training),
        )

    def programs(self, membership: Membership, threads: int, arenas: bool) -> tuple[LocalParameters, Programs]:
        """Return the run's programs, fetched and loaded when they are asked for, and the fresh buffers that they read."""
        parameters = LocalParameters(membership.model, membership.directions_per_run)
        base = MappedBase(self._base_file(membership), membership.model.base)
        return parameters, Programs(
            membership.programs, lambda p: self._program(membership, parameters, base=base, reference=p, threads=threads, arena=arenas)
        )

    def tokenizer(self, specification: DataSpecification) -> bytes | None:
        """Fetch the tokenizer that a run names, if it names one; kept for next time as a program is.

        Raises:
            ProgramError: it is larger than any tokenizer.

        """
        blob = specification.tokenizer
        if blob is None:
            return None
        data = self._state.cached_program(blob)
        if data is None:
            data = self._fetcher.tokenizer(blob)
            self._state.keep_program(blob, data)
        return data

    def load_weights(self, parameters: LocalParameters, assignment: Assignment) -> None:
        """Fetch the weights and running statistics that an assignment names into the client's buffers.

        Raises:
            ProgramError: they do not have the model's size, or statistics are missing.

        """
        targets = (
            (assignment.client_model, parameters.front, "front weights"),
            (assignment.auxiliary_head, parameters.head, "head weights"),
            (assignment.statistics, parameters.statistics, "running statistics"),
        )
        if parameters.statistics.size and assignment.statistics is None:
            raise ProgramError("the model has running statistics, but the assignment names none to start from: restart the server")
        for blob, target, what in targets:
            if blob is None:
                continue
            if blob.size_bytes != target.nbytes:
                raise ProgramError(
                    f"the {what} should have {target.nbytes} bytes, but the assignment names {blob.size_bytes}: restart the server"
                )
            self._fetcher.fetch_into(blob, raw_bytes(target), kind="weights", what=what)

    def _base_file(self, membership: Membership) -> Path | None:
        if membership.base is None:
            return None
        path = self._state.large_blob_path(membership.base)
        if path.exists() and has_digest(path, membership.base):
            return path
        if path.exists():
            # A device that lost power while it wrote has nobody beside it who would delete a file.
            log.warning("the frozen weights kept here are damaged, fetching them again", extra={"path": str(path)})
            path.unlink()
        check_room(path, membership.base)
        log.info("fetching frozen weights", extra={"megabytes": round(membership.base.size_bytes / 1e6, 1)})
        self._fetcher.fetch_file(membership.base, path, kind="base", what="the frozen weights")
        return path

    def _program(
        self,
        membership: Membership,
        parameters: LocalParameters,
        *,
        base: MappedBase,
        reference: ProgramReference,
        threads: int,
        arena: bool,
    ) -> Program:
        check_reference(reference)
        data = self._state.cached_program(reference.blob)
        if data is None:
            data = self._fetcher.fetch(reference.blob, kind="program", what="a program")
            self._state.keep_program(reference.blob, data)
        # Loading a graph touches far more of the runtime than running it ever will, as opening a channel does of gRPC.
        self._give_memory_back()
        program = Program(
            reference,
            data,
            model=membership.model,
            parameters=parameters,
            specification=membership.data_specification,
            threads=threads,
            base=base,
            arena=arena,
            runs=self._runs,
        )
        self._give_memory_back()
        return program


def _lengths(reader: SampleReader) -> Int64Array | None:
    lengths = reader.lengths()
    if lengths is not None:
        counts = {str(length): int(np.sum(lengths == length)) for length in reader.specification.lengths}
        log.info("texts by length in tokens", extra=counts)
    return lengths


def _some(lengths: Int64Array | None, rows: Int64Array) -> Int64Array | None:
    return None if lengths is None else lengths[rows]


def check_room(path: Path, blob: BlobReference) -> None:
    """Refuse a blob that would leave less than a tenth of what is free on its disk, before it is fetched.

    Raises:
        StorageError: it would.

    """
    free = shutil.disk_usage(path.parent).free
    if blob.size_bytes > free - free // 10:
        raise StorageError(
            f"the frozen weights take {blob.size_bytes} bytes, but {path.parent} has {free} free, a tenth of which stays so: "
            "free some space or choose another --state-dir"
        )


def _reader(reader: SampleReader, rows: Int64Array) -> ReadBatch:
    """Return what reads some of these rows of the shard, by their place among them."""

    def read_batch(indices: Int64Array, length: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        return reader.batch(rows[indices], length)

    return read_batch
