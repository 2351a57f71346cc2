"""The audit trail of a run whose clients submit logs: per round what every client did and what came of it, enough to prove the weights again."""

from __future__ import annotations

import json
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from heron_common.errors import CheckpointError, StorageError
from heron_common.files.atomic import write_atomically
from heron_common.files.plain_files import is_plain, plain_folder, read_plain
from heron_common.numerics.tensors import Float64Array
from heron_common.process.process_memory import available_memory


@dataclass(frozen=True)
class AuditFacts:
    """What the replay of one round needs beside logs.

    Attributes:
        round_index, attempt: which round.
        run_seed: what directions derive from.
        clients: whose updates counted, in the order of aggregation.
        aggregation: the rule's name.
        trains_head: whether the trained weights are front and head, or the front alone.
        tensors: names in a checkpoint and shapes of the trained tensors, in flat order.
        start_sha256, result_sha256: of the trained weights before and after, hexadecimal.
        client_sha256: of each client's resulting weights, hexadecimal.

    """

    round_index: int
    attempt: int
    _: KW_ONLY
    run_seed: int
    clients: tuple[str, ...]
    aggregation: str
    trains_head: bool
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    start_sha256: str
    result_sha256: str
    client_sha256: tuple[str, ...]


@dataclass(frozen=True)
class AuditRound:
    """One round: facts, direction scales, aggregation weights, and for each client either its coefficients (float64) or its weights (float32)."""

    facts: AuditFacts
    scales: Float64Array
    _: KW_ONLY
    weights: Float64Array
    submissions: tuple[npt.NDArray[Any], ...]


class AuditTrail:
    """A file for every round in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path_of(self, round_index: int) -> Path:
        """Return where a round's file is."""
        return self._directory / f"round-{round_index:06d}.safetensors"

    def write(self, entry: AuditRound) -> None:
        """Write one round; a repeated round replaces its file.

        Raises:
            StorageError: the disk refuses.

        """
        tensors = {f"submission.{i:05d}": np.ascontiguousarray(array) for i, array in enumerate(entry.submissions)}
        data = save({**tensors, "scales": entry.scales, "weights": entry.weights}, {"facts": json.dumps(asdict(entry.facts))})
        path = self.path_of(entry.facts.round_index)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
        except OSError as exc:
            raise StorageError(f"cannot write {path} ({exc.strerror or exc}): free some space, or this run cannot be audited") from exc

    def recorded(self) -> list[int]:
        """Return the rounds that were recorded, in order."""
        files = self._directory.glob("round-*.safetensors") if self._directory.is_dir() else ()
        numbers = (path.stem.removeprefix("round-") for path in files if is_plain(path))
        return sorted({int(number) for number in numbers if number.isascii() and number.isdigit() and len(number) < 16})

    def read(self, round_index: int) -> AuditRound:
        """Return one round.

        Raises:
            CheckpointError: its file is missing or damaged.

        """
        path = self.path_of(round_index)
        try:
            plain_folder(self._directory)
            data = read_plain(path, available_memory() or 1 << 40)
            tensors = load(data)
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            facts = json.loads(header["__metadata__"]["facts"])
            listed: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in facts.items()}
            listed["tensors"] = tuple((str(name), tuple(int(n) for n in shape)) for name, shape in facts["tensors"])
            submissions = tuple(tensors[name] for name in sorted(tensors) if name.startswith("submission."))
            return AuditRound(AuditFacts(**listed), tensors["scales"], weights=tensors["weights"], submissions=submissions)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as exc:
            raise CheckpointError(f"{path} is missing or damaged ({exc}): this round cannot be proved") from exc
