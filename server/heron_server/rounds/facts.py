"""What does not change over a run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from heron_common.algorithm.algorithm import Algorithm
from heron_common.protocol.timing import Timing
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import BlobReference, ModelSpec, ProgramReference


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What every client of the run is told."""

    run_id: str
    run_seed: int
    data: DataSpecification
    model: ModelSpec
    programs: tuple[ProgramReference, ...]
    algorithm: Algorithm
    timing: Timing
    base: BlobReference | None = None
    held_out: float = 0.0
    """Share of its own samples that each client keeps from training."""
    evaluation_batches: int = 0
    """Most batches of them that a client sends in a round; 0 where nothing is held out."""

    @cached_property
    def blob_kinds(self) -> dict[str, str]:
        """What every client may fetch at any time, by digest."""
        kinds = {program.blob.sha256: "program" for program in self.programs}
        kinds |= {self.base.sha256: "base"} if self.base else {}
        return kinds | ({self.data.tokenizer.sha256: "tokenizer"} if self.data.tokenizer else {})
