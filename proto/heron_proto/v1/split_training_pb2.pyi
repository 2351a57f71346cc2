from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    DTYPE_FLOAT32: _ClassVar[DType]
    DTYPE_INT64: _ClassVar[DType]
    DTYPE_FLOAT16: _ClassVar[DType]
    DTYPE_BFLOAT16: _ClassVar[DType]
    DTYPE_INT8: _ClassVar[DType]
    DTYPE_FLOAT64: _ClassVar[DType]
    DTYPE_UINT8: _ClassVar[DType]

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_CLASSIFICATION: _ClassVar[Task]
    TASK_REGRESSION: _ClassVar[Task]
    TASK_NEXT_TOKEN: _ClassVar[Task]

class ProgramKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROGRAM_KIND_UNSPECIFIED: _ClassVar[ProgramKind]
    PROGRAM_KIND_LOSS: _ClassVar[ProgramKind]
    PROGRAM_KIND_FRONT: _ClassVar[ProgramKind]
    PROGRAM_KIND_GRADIENT: _ClassVar[ProgramKind]
    PROGRAM_KIND_SURROGATE: _ClassVar[ProgramKind]
    PROGRAM_KIND_PULLBACK: _ClassVar[ProgramKind]

class Objective(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OBJECTIVE_UNSPECIFIED: _ClassVar[Objective]
    OBJECTIVE_NONE: _ClassVar[Objective]
    OBJECTIVE_AUXILIARY: _ClassVar[Objective]
    OBJECTIVE_SERVER: _ClassVar[Objective]
    OBJECTIVE_CUT_GRADIENT: _ClassVar[Objective]

class Estimator(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ESTIMATOR_UNSPECIFIED: _ClassVar[Estimator]
    ESTIMATOR_NONE: _ClassVar[Estimator]
    ESTIMATOR_ZEROTH_ORDER: _ClassVar[Estimator]
    ESTIMATOR_FIRST_ORDER: _ClassVar[Estimator]
    ESTIMATOR_HYBRID: _ClassVar[Estimator]

class FiniteDifference(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINITE_DIFFERENCE_UNSPECIFIED: _ClassVar[FiniteDifference]
    FINITE_DIFFERENCE_FORWARD: _ClassVar[FiniteDifference]
    FINITE_DIFFERENCE_CENTRAL: _ClassVar[FiniteDifference]

class DirectionDistribution(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DIRECTION_DISTRIBUTION_UNSPECIFIED: _ClassVar[DirectionDistribution]
    DIRECTION_DISTRIBUTION_RADEMACHER: _ClassVar[DirectionDistribution]
    DIRECTION_DISTRIBUTION_GAUSSIAN: _ClassVar[DirectionDistribution]
    DIRECTION_DISTRIBUTION_SPHERE: _ClassVar[DirectionDistribution]

class ClientOptimiser(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLIENT_OPTIMISER_UNSPECIFIED: _ClassVar[ClientOptimiser]
    CLIENT_OPTIMISER_SGD: _ClassVar[ClientOptimiser]
    CLIENT_OPTIMISER_ADAM: _ClassVar[ClientOptimiser]
    CLIENT_OPTIMISER_SCALAR_ADAPTIVE: _ClassVar[ClientOptimiser]
    CLIENT_OPTIMISER_MOMENTUM: _ClassVar[ClientOptimiser]
    CLIENT_OPTIMISER_ADAMW: _ClassVar[ClientOptimiser]

class HeadTraining(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEAD_TRAINING_UNSPECIFIED: _ClassVar[HeadTraining]
    HEAD_TRAINING_NONE: _ClassVar[HeadTraining]
    HEAD_TRAINING_CLIENT: _ClassVar[HeadTraining]
    HEAD_TRAINING_SERVER: _ClassVar[HeadTraining]
    HEAD_TRAINING_ALIGNMENT: _ClassVar[HeadTraining]

class UploadPurpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UPLOAD_PURPOSE_UNSPECIFIED: _ClassVar[UploadPurpose]
    UPLOAD_PURPOSE_TRAIN: _ClassVar[UploadPurpose]
    UPLOAD_PURPOSE_PROBE: _ClassVar[UploadPurpose]
    UPLOAD_PURPOSE_EVALUATE: _ClassVar[UploadPurpose]

class UpdateEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UPDATE_ENCODING_UNSPECIFIED: _ClassVar[UpdateEncoding]
    UPDATE_ENCODING_DENSE: _ClassVar[UpdateEncoding]
    UPDATE_ENCODING_LOG: _ClassVar[UpdateEncoding]
DTYPE_UNSPECIFIED: DType
DTYPE_FLOAT32: DType
DTYPE_INT64: DType
DTYPE_FLOAT16: DType
DTYPE_BFLOAT16: DType
DTYPE_INT8: DType
DTYPE_FLOAT64: DType
DTYPE_UINT8: DType
TASK_UNSPECIFIED: Task
TASK_CLASSIFICATION: Task
TASK_REGRESSION: Task
TASK_NEXT_TOKEN: Task
PROGRAM_KIND_UNSPECIFIED: ProgramKind
PROGRAM_KIND_LOSS: ProgramKind
PROGRAM_KIND_FRONT: ProgramKind
PROGRAM_KIND_GRADIENT: ProgramKind
PROGRAM_KIND_SURROGATE: ProgramKind
PROGRAM_KIND_PULLBACK: ProgramKind
OBJECTIVE_UNSPECIFIED: Objective
OBJECTIVE_NONE: Objective
OBJECTIVE_AUXILIARY: Objective
OBJECTIVE_SERVER: Objective
OBJECTIVE_CUT_GRADIENT: Objective
ESTIMATOR_UNSPECIFIED: Estimator
ESTIMATOR_NONE: Estimator
ESTIMATOR_ZEROTH_ORDER: Estimator
ESTIMATOR_FIRST_ORDER: Estimator
ESTIMATOR_HYBRID: Estimator
FINITE_DIFFERENCE_UNSPECIFIED: FiniteDifference
FINITE_DIFFERENCE_FORWARD: FiniteDifference
FINITE_DIFFERENCE_CENTRAL: FiniteDifference
DIRECTION_DISTRIBUTION_UNSPECIFIED: DirectionDistribution
DIRECTION_DISTRIBUTION_RADEMACHER: DirectionDistribution
DIRECTION_DISTRIBUTION_GAUSSIAN: DirectionDistribution
DIRECTION_DISTRIBUTION_SPHERE: DirectionDistribution
CLIENT_OPTIMISER_UNSPECIFIED: ClientOptimiser
CLIENT_OPTIMISER_SGD: ClientOptimiser
CLIENT_OPTIMISER_ADAM: ClientOptimiser
CLIENT_OPTIMISER_SCALAR_ADAPTIVE: ClientOptimiser
CLIENT_OPTIMISER_MOMENTUM: ClientOptimiser
CLIENT_OPTIMISER_ADAMW: ClientOptimiser
HEAD_TRAINING_UNSPECIFIED: HeadTraining
HEAD_TRAINING_NONE: HeadTraining
HEAD_TRAINING_CLIENT: HeadTraining
HEAD_TRAINING_SERVER: HeadTraining
HEAD_TRAINING_ALIGNMENT: HeadTraining
UPLOAD_PURPOSE_UNSPECIFIED: UploadPurpose
UPLOAD_PURPOSE_TRAIN: UploadPurpose
UPLOAD_PURPOSE_PROBE: UploadPurpose
UPLOAD_PURPOSE_EVALUATE: UploadPurpose
UPDATE_ENCODING_UNSPECIFIED: UpdateEncoding
UPDATE_ENCODING_DENSE: UpdateEncoding
UPDATE_ENCODING_LOG: UpdateEncoding

class TensorSpec(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Blob(_message.Message):
    __slots__ = ("sha256", "size_bytes")
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    sha256: str
    size_bytes: int
    def __init__(self, sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class TensorChunk(_message.Message):
    __slots__ = ("tensor_index", "data")
    TENSOR_INDEX_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    tensor_index: int
    data: bytes
    def __init__(self, tensor_index: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Trailer(_message.Message):
    __slots__ = ("length_bytes", "sha256")
    LENGTH_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    length_bytes: int
    sha256: bytes
    def __init__(self, length_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class DataSpecification(_message.Message):
    __slots__ = ("name", "input_shape", "num_classes", "mean", "standard_deviation", "task", "tokens", "class_names", "channel_means", "channel_deviations", "tokenizer", "refuses_overlong", "lengths", "columns", "columns_of_client")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INPUT_SHAPE_FIELD_NUMBER: _ClassVar[int]
    NUM_CLASSES_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STANDARD_DEVIATION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_MEANS_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_DEVIATIONS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    REFUSES_OVERLONG_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_OF_CLIENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    input_shape: _containers.RepeatedScalarFieldContainer[int]
    num_classes: int
    mean: float
    standard_deviation: float
    task: Task
    tokens: bool
    class_names: _containers.RepeatedScalarFieldContainer[str]
    channel_means: _containers.RepeatedScalarFieldContainer[float]
    channel_deviations: _containers.RepeatedScalarFieldContainer[float]
    tokenizer: Blob
    refuses_overlong: bool
    lengths: _containers.RepeatedScalarFieldContainer[int]
    columns: _containers.RepeatedScalarFieldContainer[str]
    columns_of_client: bool
    def __init__(self, name: _Optional[str] = ..., input_shape: _Optional[_Iterable[int]] = ..., num_classes: _Optional[int] = ..., mean: _Optional[float] = ..., standard_deviation: _Optional[float] = ..., task: _Optional[_Union[Task, str]] = ..., tokens: bool = ..., class_names: _Optional[_Iterable[str]] = ..., channel_means: _Optional[_Iterable[float]] = ..., channel_deviations: _Optional[_Iterable[float]] = ..., tokenizer: _Optional[_Union[Blob, _Mapping]] = ..., refuses_overlong: bool = ..., lengths: _Optional[_Iterable[int]] = ..., columns: _Optional[_Iterable[str]] = ..., columns_of_client: bool = ...) -> None: ...

class Program(_message.Message):
    __slots__ = ("kind", "blob", "micro_batch", "length", "directions")
    KIND_FIELD_NUMBER: _ClassVar[int]
    BLOB_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    kind: ProgramKind
    blob: Blob
    micro_batch: int
    length: int
    directions: int
    def __init__(self, kind: _Optional[_Union[ProgramKind, str]] = ..., blob: _Optional[_Union[Blob, _Mapping]] = ..., micro_batch: _Optional[int] = ..., length: _Optional[int] = ..., directions: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("client_model", "auxiliary_head", "cut", "labels", "context", "base", "statistics", "lengths", "without_gradient")
    CLIENT_MODEL_FIELD_NUMBER: _ClassVar[int]
    AUXILIARY_HEAD_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    client_model: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    auxiliary_head: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    cut: TensorSpec
    labels: TensorSpec
    context: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    base: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    statistics: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    without_gradient: int
    def __init__(self, client_model: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., auxiliary_head: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., cut: _Optional[_Union[TensorSpec, _Mapping]] = ..., labels: _Optional[_Union[TensorSpec, _Mapping]] = ..., context: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., base: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., statistics: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., lengths: _Optional[_Iterable[int]] = ..., without_gradient: _Optional[int] = ...) -> None: ...

class Plan(_message.Message):
    __slots__ = ("preset", "objective", "estimator", "difference", "distribution", "direction_groups", "smoothing_radius", "head_training", "local_steps", "upload_interval", "batch_size", "micro_batch", "optimiser", "learning_rate", "clip_factor", "num_directions", "wire_dtype", "update_encoding", "momentum", "weight_decay", "relative_step", "backward_equivalents")
    PRESET_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    ESTIMATOR_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_GROUPS_FIELD_NUMBER: _ClassVar[int]
    SMOOTHING_RADIUS_FIELD_NUMBER: _ClassVar[int]
    HEAD_TRAINING_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    OPTIMISER_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    CLIP_FACTOR_FIELD_NUMBER: _ClassVar[int]
    NUM_DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    WIRE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    UPDATE_ENCODING_FIELD_NUMBER: _ClassVar[int]
    MOMENTUM_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_STEP_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_EQUIVALENTS_FIELD_NUMBER: _ClassVar[int]
    preset: str
    objective: Objective
    estimator: Estimator
    difference: FiniteDifference
    distribution: DirectionDistribution
    direction_groups: int
    smoothing_radius: float
    head_training: HeadTraining
    local_steps: int
    upload_interval: int
    batch_size: int
    micro_batch: int
    optimiser: ClientOptimiser
    learning_rate: float
    clip_factor: float
    num_directions: int
    wire_dtype: DType
    update_encoding: UpdateEncoding
    momentum: float
    weight_decay: float
    relative_step: float
    backward_equivalents: float
    def __init__(self, preset: _Optional[str] = ..., objective: _Optional[_Union[Objective, str]] = ..., estimator: _Optional[_Union[Estimator, str]] = ..., difference: _Optional[_Union[FiniteDifference, str]] = ..., distribution: _Optional[_Union[DirectionDistribution, str]] = ..., direction_groups: _Optional[int] = ..., smoothing_radius: _Optional[float] = ..., head_training: _Optional[_Union[HeadTraining, str]] = ..., local_steps: _Optional[int] = ..., upload_interval: _Optional[int] = ..., batch_size: _Optional[int] = ..., micro_batch: _Optional[int] = ..., optimiser: _Optional[_Union[ClientOptimiser, str]] = ..., learning_rate: _Optional[float] = ..., clip_factor: _Optional[float] = ..., num_directions: _Optional[int] = ..., wire_dtype: _Optional[_Union[DType, str]] = ..., update_encoding: _Optional[_Union[UpdateEncoding, str]] = ..., momentum: _Optional[float] = ..., weight_decay: _Optional[float] = ..., relative_step: _Optional[float] = ..., backward_equivalents: _Optional[float] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("client_version", "runtime_version")
    CLIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_VERSION_FIELD_NUMBER: _ClassVar[int]
    client_version: str
    runtime_version: str
    def __init__(self, client_version: _Optional[str] = ..., runtime_version: _Optional[str] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("protocol_version", "client_name", "identity_key", "num_examples", "capabilities", "only_checks", "columns", "seal")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_NAME_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_KEY_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    ONLY_CHECKS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    client_name: str
    identity_key: str
    num_examples: int
    capabilities: Capabilities
    only_checks: bool
    columns: _containers.RepeatedScalarFieldContainer[str]
    seal: int
    def __init__(self, protocol_version: _Optional[int] = ..., client_name: _Optional[str] = ..., identity_key: _Optional[str] = ..., num_examples: _Optional[int] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ..., only_checks: bool = ..., columns: _Optional[_Iterable[str]] = ..., seal: _Optional[int] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("run_id", "session", "run_seed", "data_specification", "model", "programs", "heartbeat_seconds", "num_rounds", "base", "held_out", "evaluation_batches", "plan", "server_time_seconds", "seal")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RUN_SEED_FIELD_NUMBER: _ClassVar[int]
    DATA_SPECIFICATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROGRAMS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NUM_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_BATCHES_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    session: str
    run_seed: int
    data_specification: DataSpecification
    model: Model
    programs: _containers.RepeatedCompositeFieldContainer[Program]
    heartbeat_seconds: float
    num_rounds: int
    base: Blob
    held_out: float
    evaluation_batches: int
    plan: Plan
    server_time_seconds: float
    seal: int
    def __init__(self, run_id: _Optional[str] = ..., session: _Optional[str] = ..., run_seed: _Optional[int] = ..., data_specification: _Optional[_Union[DataSpecification, _Mapping]] = ..., model: _Optional[_Union[Model, _Mapping]] = ..., programs: _Optional[_Iterable[_Union[Program, _Mapping]]] = ..., heartbeat_seconds: _Optional[float] = ..., num_rounds: _Optional[int] = ..., base: _Optional[_Union[Blob, _Mapping]] = ..., held_out: _Optional[float] = ..., evaluation_batches: _Optional[int] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., server_time_seconds: _Optional[float] = ..., seal: _Optional[int] = ...) -> None: ...

class FetchBlobRequest(_message.Message):
    __slots__ = ("session", "sha256", "offset_bytes", "seal")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    session: str
    sha256: str
    offset_bytes: int
    seal: int
    def __init__(self, session: _Optional[str] = ..., sha256: _Optional[str] = ..., offset_bytes: _Optional[int] = ..., seal: _Optional[int] = ...) -> None: ...

class FetchBlobResponse(_message.Message):
    __slots__ = ("data", "seal")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    seal: int
    def __init__(self, data: _Optional[bytes] = ..., seal: _Optional[int] = ...) -> None: ...

class RoundReference(_message.Message):
    __slots__ = ("round_index", "attempt")
    ROUND_INDEX_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    round_index: int
    attempt: int
    def __init__(self, round_index: _Optional[int] = ..., attempt: _Optional[int] = ...) -> None: ...

class NextAssignmentRequest(_message.Message):
    __slots__ = ("session", "training", "losses_seen", "seal")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    LOSSES_SEEN_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    session: str
    training: RoundReference
    losses_seen: int
    seal: int
    def __init__(self, session: _Optional[str] = ..., training: _Optional[_Union[RoundReference, _Mapping]] = ..., losses_seen: _Optional[int] = ..., seal: _Optional[int] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("round", "plan", "client_model", "auxiliary_head", "direction_scales", "second_moment", "derivative_quantile", "statistics")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    CLIENT_MODEL_FIELD_NUMBER: _ClassVar[int]
    AUXILIARY_HEAD_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_SCALES_FIELD_NUMBER: _ClassVar[int]
    SECOND_MOMENT_FIELD_NUMBER: _ClassVar[int]
    DERIVATIVE_QUANTILE_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    round: RoundReference
    plan: Plan
    client_model: Blob
    auxiliary_head: Blob
    direction_scales: _containers.RepeatedScalarFieldContainer[float]
    second_moment: float
    derivative_quantile: float
    statistics: Blob
    def __init__(self, round: _Optional[_Union[RoundReference, _Mapping]] = ..., plan: _Optional[_Union[Plan, _Mapping]] = ..., client_model: _Optional[_Union[Blob, _Mapping]] = ..., auxiliary_head: _Optional[_Union[Blob, _Mapping]] = ..., direction_scales: _Optional[_Iterable[float]] = ..., second_moment: _Optional[float] = ..., derivative_quantile: _Optional[float] = ..., statistics: _Optional[_Union[Blob, _Mapping]] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ("seconds", "reason")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    reason: str
    def __init__(self, seconds: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class NextAssignmentResponse(_message.Message):
    __slots__ = ("assignment", "wait", "finished", "losses", "seal")
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    assignment: Assignment
    wait: Wait
    finished: Finished
    losses: _containers.RepeatedCompositeFieldContainer[UploadLoss]
    seal: int
    def __init__(self, assignment: _Optional[_Union[Assignment, _Mapping]] = ..., wait: _Optional[_Union[Wait, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., losses: _Optional[_Iterable[_Union[UploadLoss, _Mapping]]] = ..., seal: _Optional[int] = ...) -> None: ...

class UploadHeader(_message.Message):
    __slots__ = ("session", "run_id", "round", "purpose", "local_step", "num_probes", "tensors", "total_bytes", "losses_seen")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STEP_FIELD_NUMBER: _ClassVar[int]
    NUM_PROBES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOSSES_SEEN_FIELD_NUMBER: _ClassVar[int]
    session: str
    run_id: str
    round: RoundReference
    purpose: UploadPurpose
    local_step: int
    num_probes: int
    tensors: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    total_bytes: int
    losses_seen: int
    def __init__(self, session: _Optional[str] = ..., run_id: _Optional[str] = ..., round: _Optional[_Union[RoundReference, _Mapping]] = ..., purpose: _Optional[_Union[UploadPurpose, str]] = ..., local_step: _Optional[int] = ..., num_probes: _Optional[int] = ..., tensors: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., total_bytes: _Optional[int] = ..., losses_seen: _Optional[int] = ...) -> None: ...

class TrainBatchRequest(_message.Message):
    __slots__ = ("header", "chunk", "trailer", "seal")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    header: UploadHeader
    chunk: TensorChunk
    trailer: Trailer
    seal: int
    def __init__(self, header: _Optional[_Union[UploadHeader, _Mapping]] = ..., chunk: _Optional[_Union[TensorChunk, _Mapping]] = ..., trailer: _Optional[_Union[Trailer, _Mapping]] = ..., seal: _Optional[int] = ...) -> None: ...

class UploadLoss(_message.Message):
    __slots__ = ("round", "local_step", "server_loss", "server_version")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STEP_FIELD_NUMBER: _ClassVar[int]
    SERVER_LOSS_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    round: RoundReference
    local_step: int
    server_loss: float
    server_version: int
    def __init__(self, round: _Optional[_Union[RoundReference, _Mapping]] = ..., local_step: _Optional[int] = ..., server_loss: _Optional[float] = ..., server_version: _Optional[int] = ...) -> None: ...

class UploadAnswer(_message.Message):
    __slots__ = ("server_version", "probe_losses", "losses", "tensors")
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROBE_LOSSES_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    server_version: int
    probe_losses: _containers.RepeatedScalarFieldContainer[float]
    losses: _containers.RepeatedCompositeFieldContainer[UploadLoss]
    tensors: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    def __init__(self, server_version: _Optional[int] = ..., probe_losses: _Optional[_Iterable[float]] = ..., losses: _Optional[_Iterable[_Union[UploadLoss, _Mapping]]] = ..., tensors: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ...) -> None: ...

class TrainBatchResponse(_message.Message):
    __slots__ = ("answer", "chunk", "trailer", "seal")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    answer: UploadAnswer
    chunk: TensorChunk
    trailer: Trailer
    seal: int
    def __init__(self, answer: _Optional[_Union[UploadAnswer, _Mapping]] = ..., chunk: _Optional[_Union[TensorChunk, _Mapping]] = ..., trailer: _Optional[_Union[Trailer, _Mapping]] = ..., seal: _Optional[int] = ...) -> None: ...

class LocalStatistics(_message.Message):
    __slots__ = ("second_moment", "mean_local_loss", "forward_passes", "differences", "difference_mean", "difference_variance", "differences_clipped", "differences_non_finite", "step_seconds", "upload_wait_seconds", "peak_memory_bytes", "derivative_quantile", "steps_skipped", "diverged", "forward_equivalents", "peak_anonymous_bytes")
    SECOND_MOMENT_FIELD_NUMBER: _ClassVar[int]
    MEAN_LOCAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_PASSES_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_MEAN_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_CLIPPED_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_NON_FINITE_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DERIVATIVE_QUANTILE_FIELD_NUMBER: _ClassVar[int]
    STEPS_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    DIVERGED_FIELD_NUMBER: _ClassVar[int]
    FORWARD_EQUIVALENTS_FIELD_NUMBER: _ClassVar[int]
    PEAK_ANONYMOUS_BYTES_FIELD_NUMBER: _ClassVar[int]
    second_moment: float
    mean_local_loss: float
    forward_passes: int
    differences: int
    difference_mean: float
    difference_variance: float
    differences_clipped: int
    differences_non_finite: int
    step_seconds: float
    upload_wait_seconds: float
    peak_memory_bytes: int
    derivative_quantile: float
    steps_skipped: int
    diverged: bool
    forward_equivalents: float
    peak_anonymous_bytes: int
    def __init__(self, second_moment: _Optional[float] = ..., mean_local_loss: _Optional[float] = ..., forward_passes: _Optional[int] = ..., differences: _Optional[int] = ..., difference_mean: _Optional[float] = ..., difference_variance: _Optional[float] = ..., differences_clipped: _Optional[int] = ..., differences_non_finite: _Optional[int] = ..., step_seconds: _Optional[float] = ..., upload_wait_seconds: _Optional[float] = ..., peak_memory_bytes: _Optional[int] = ..., derivative_quantile: _Optional[float] = ..., steps_skipped: _Optional[int] = ..., diverged: bool = ..., forward_equivalents: _Optional[float] = ..., peak_anonymous_bytes: _Optional[int] = ...) -> None: ...

class UpdateHeader(_message.Message):
    __slots__ = ("session", "run_id", "round", "steps_completed", "encoding", "tensors", "total_bytes", "statistics", "losses_seen", "weights_sha256")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEPS_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    LOSSES_SEEN_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    session: str
    run_id: str
    round: RoundReference
    steps_completed: int
    encoding: UpdateEncoding
    tensors: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    total_bytes: int
    statistics: LocalStatistics
    losses_seen: int
    weights_sha256: bytes
    def __init__(self, session: _Optional[str] = ..., run_id: _Optional[str] = ..., round: _Optional[_Union[RoundReference, _Mapping]] = ..., steps_completed: _Optional[int] = ..., encoding: _Optional[_Union[UpdateEncoding, str]] = ..., tensors: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., total_bytes: _Optional[int] = ..., statistics: _Optional[_Union[LocalStatistics, _Mapping]] = ..., losses_seen: _Optional[int] = ..., weights_sha256: _Optional[bytes] = ...) -> None: ...

class SubmitUpdateRequest(_message.Message):
    __slots__ = ("header", "chunk", "trailer", "seal")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    TRAILER_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    header: UpdateHeader
    chunk: TensorChunk
    trailer: Trailer
    seal: int
    def __init__(self, header: _Optional[_Union[UpdateHeader, _Mapping]] = ..., chunk: _Optional[_Union[TensorChunk, _Mapping]] = ..., trailer: _Optional[_Union[Trailer, _Mapping]] = ..., seal: _Optional[int] = ...) -> None: ...

class SubmitUpdateResponse(_message.Message):
    __slots__ = ("losses", "seal")
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    losses: _containers.RepeatedCompositeFieldContainer[UploadLoss]
    seal: int
    def __init__(self, losses: _Optional[_Iterable[_Union[UploadLoss, _Mapping]]] = ..., seal: _Optional[int] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("session", "reason", "peak_memory_bytes", "peak_anonymous_bytes", "seal")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PEAK_ANONYMOUS_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEAL_FIELD_NUMBER: _ClassVar[int]
    session: str
    reason: str
    peak_memory_bytes: int
    peak_anonymous_bytes: int
    seal: int
    def __init__(self, session: _Optional[str] = ..., reason: _Optional[str] = ..., peak_memory_bytes: _Optional[int] = ..., peak_anonymous_bytes: _Optional[int] = ..., seal: _Optional[int] = ...) -> None: ...

class LeaveResponse(_message.Message):
    __slots__ = ("seal",)
    SEAL_FIELD_NUMBER: _ClassVar[int]
    seal: int
    def __init__(self, seal: _Optional[int] = ...) -> None: ...
