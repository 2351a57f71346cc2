"""Small domain values for tests of single parts: model, plan, attempt."""

from __future__ import annotations

import dataclasses
from typing import Any

from heron_common.algorithm.algorithm import ServerSchedule
from heron_common.algorithm.plan import Plan, UpdateEncoding
from heron_common.algorithm.presets import preset
from heron_common.ids import RoundReference
from heron_common.numerics.tensors import DType, TensorSpec
from heron_common.protocol.messages import Assignment, UploadKey, UploadPurpose
from heron_common.protocol.timing import Timing
from heron_common.specification.data_specification import DataSpecification
from heron_common.specification.model_spec import BlobReference, ModelSpec
from heron_server.rounds.accepted import AcceptedUpload
from heron_server.rounds.attempt import Attempt
from heron_server.rounds.facts import RunFacts
from heron_server.storage.spool import SpoolEntry

ROUND = RoundReference(3, 1)
MODEL = ModelSpec(
    client_model=(TensorSpec("w", DType.FLOAT32, (3, 2)), TensorSpec("b", DType.FLOAT32, (3,))),
    auxiliary_head=(TensorSpec("h", DType.FLOAT32, (5,)),),
    cut=TensorSpec("activations", DType.FLOAT32, (2, 2)),
)


def plan(preset_name: str = "heron", **changes: Any) -> Plan:
    complete = {
        "local_steps": 6,
        "batch_size": 4,
        "direction_groups": 2,
        "micro_batch": 2,
        "update_encoding": UpdateEncoding.DENSE,
        **changes,
    }
    return dataclasses.replace(preset(preset_name).plan, **complete)


def attempt(
    cohort: tuple[str, ...] = ("a", "b"), schedule: ServerSchedule = ServerSchedule.ARRIVAL, preset_name: str = "heron", **changes: Any
) -> Attempt:
    blob = BlobReference("0" * 64, 36)
    return Attempt(
        Assignment(
            ROUND, plan(preset_name, **changes), client_model=blob, auxiliary_head=None, direction_scales=(1.0, 1.0), second_moment=0.0
        ),
        run_facts(schedule, preset_name),
        cohort=cohort,
    )


def run_facts(
    schedule: ServerSchedule = ServerSchedule.ARRIVAL, preset_name: str = "heron", model: ModelSpec = MODEL, *, evaluation_batches: int = 0
) -> RunFacts:
    """Return what does not change over a small run."""
    return RunFacts(
        run_id="run",
        run_seed=7,
        data=DataSpecification("d", (4,), num_classes=3),
        model=model,
        programs=(),
        algorithm=dataclasses.replace(preset(preset_name), schedule=schedule, warmup_rounds=0),
        timing=Timing(),
        evaluation_batches=evaluation_batches,
    )


def key(client: str = "a", step: int = 0, purpose: UploadPurpose = UploadPurpose.TRAIN, reference: RoundReference = ROUND) -> UploadKey:
    return UploadKey(reference, client, purpose=purpose, local_step=step)


def upload(of: UploadKey, entry: SpoolEntry, sha256: str = "d") -> AcceptedUpload:
    return AcceptedUpload(of, sha256, entry=entry, accepted_at=0.0)
