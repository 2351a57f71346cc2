"""What a split model is: front (theta_c), auxiliary head (theta_a), back (theta_s) and a per-sample loss."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from heron_common.numerics.tensors import DType, Float32Array, TensorSpec
from heron_common.specification.data_specification import IGNORED, PADDING, DataSpecification, Task
from heron_common.specification.model_spec import FRONT_STATISTICS, HEAD_STATISTICS, BlobReference, ModelSpec
from heron_server.models.base import BaseStorage, FrozenTensor, frozen_tensors, named_frozen
from heron_server.models.batch_norm import running_statistics
from heron_server.models.probes import Probes
from heron_server.models.token_input import TokenInput
from heron_server.models.vocabulary_loss import next_token_losses

SampleLosses = Callable[[Any, torch.Tensor], torch.Tensor]
"""(what a head or back returns, labels) -> [B]."""


@dataclass(frozen=True)
class SplitModel:
    """A model cut in two, with a head that stands in for the back on the device.

    Attributes:
        name: model and options in canonical form; part of the key under which compiled programs are cached.
        front: x [B, *input_shape] -> activations z [B, *cut].
        auxiliary_head: z, or z and the mask of its tokens -> outputs, logits [B, num_classes] for classes.
        back: as the head.
        sample_losses: (outputs, labels) -> [B].
        input_shape: of one sample.
        num_classes: labels lie in [0, num_classes).
        task: what is asked for.
        tokens: whether x are token ids, PADDING where a sequence is shorter; then head and back take a mask too, [B, T] bool.
        tokenizer: the JSON of the tokenizer that text becomes tokens with.
        whole: the model before it was split; where there is none, front and back in a row are the whole. It shares the tensors of front and back, but
            the back of a user's module has copies (`whole_state` brings them home).
        probes: samples that a user's own module is tried on; None for all others, which take any, and for tokens that nobody gave samples of.
        lengths: those that texts are padded to on devices, ascending, the last that of `input_shape`; empty where there is only that.
        base_error: how far rounding the frozen weights to `base_storage` moved the activations at the cut, relative to the largest.
        base_storage: how frozen tensors of front and head are stored on devices; their values here are those that the stored ones stand for.
        batch_statistics: whether batch normalisations of front and head that are not frozen normalise by the whole batch on devices. Here the front
            stays in evaluation mode all the same: only clients train it, and evaluation takes the running statistics that they come to.
        token_input: how a user's own module takes tokens; None for all others.
        without_gradient: so many trained tensors at the front's beginning move by differences, those behind them by gradients; 0 where one estimator moves all.
        code_digest: of what a user's own module computes, but for its weights: its operations, settings and constants; empty for all others.

    What requires a gradient is trained, the rest is frozen. Without `batch_statistics` no part on devices normalises across samples, so micro-batches
    and direction groups change nothing but rounding.

    """

    name: str
    front: nn.Module
    _: KW_ONLY
    auxiliary_head: nn.Module
    back: nn.Module
    sample_losses: SampleLosses
    input_shape: tuple[int, ...]
    num_classes: int
    task: Task = Task.CLASSIFICATION
    tokens: bool = False
    base_storage: BaseStorage = BaseStorage.FLOAT32
    tokenizer: bytes | None = None
    whole: nn.Module | None = None
    base_error: float = 0.0
    batch_statistics: bool = False
    token_input: TokenInput | None = None
    code_digest: str = ""
    probes: Probes | None = None
    lengths: tuple[int, ...] = ()
    without_gradient: int = 0

    def to_spec(self) -> ModelSpec:
        """Return the client's tensors in flat-buffer order and the shape of a sample at the cut."""
        specification = DataSpecification("", self.input_shape, num_classes=self.num_classes, task=self.task)
        return ModelSpec(
            client_model=parameter_specs(self.front),
            auxiliary_head=parameter_specs(self.auxiliary_head),
            cut=TensorSpec("activations", DType.FLOAT32, self._cut_shape),
            labels=specification.labels,
            context=(TensorSpec("mask", DType.UINT8, self.input_shape),) if self.tokens else (),
            base=tuple(frozen.spec for frozen in self.frozen),
            statistics=tuple(TensorSpec(name, DType.FLOAT32, tuple(value.shape)) for name, value in self.statistics.items()),
            lengths=self.lengths,
            without_gradient=self.without_gradient,
        )

    def of_length(self, length: int) -> SplitModel:
        """Return the same model, tensors and all, for texts of one of its lengths alone; 0 is that of a model whose samples all have one shape."""
        if length == 0:
            return self
        # The greatest length's programs are those of a run that has no other.
        name = self.name if (length,) == self.input_shape else f"{self.name}:{length}"
        other = dataclasses.replace(self, name=name, input_shape=(length,), lengths=())
        # Stored once: narrow ones take as long to make as they are large.
        other.__dict__["frozen"] = self.frozen
        return other

    def completed(self, data: DataSpecification) -> DataSpecification:
        """Return the run's data specification with what only the model knows: its vocabulary and its tokenizer."""
        if self.task is Task.NEXT_TOKEN:
            data = dataclasses.replace(data, num_classes=self.num_classes)
        if self.tokenizer is not None:
            blob = BlobReference(hashlib.sha256(self.tokenizer).hexdigest(), len(self.tokenizer))
            data = dataclasses.replace(data, tokenizer=blob)
        return data

    @cached_property
    def frozen(self) -> list[FrozenTensor]:
        """The frozen tensors of front and head; they never change."""
        return frozen_tensors((self.front, self.auxiliary_head), self.base_storage)

    @property
    def statistics(self) -> dict[str, torch.Tensor]:
        """The running statistics of front and head that training moves, in flat-buffer order; none without `batch_statistics`."""
        if not self.batch_statistics:
            return {}
        parts = ((FRONT_STATISTICS, self.front), (HEAD_STATISTICS, self.auxiliary_head))
        return {f"{part}{name}": value for part, module in parts for name, value in running_statistics(module).items()}

    @cached_property
    def _cut_shape(self) -> tuple[int, ...]:
        with torch.no_grad():
            return tuple(self.front(self.example(2).to(device_of(self.front))).shape[1:])

    def example(self, rows: int) -> torch.Tensor:
        """Return the first probes, random tokens for a user's module, or samples of zeros, [rows, *input_shape]."""
        if self.probes is not None:
            return self.probes.first(rows)
        if self.token_input is not None:
            return self.token_input.example(rows)
        return torch.zeros(rows, *self.input_shape, dtype=torch.int64 if self.tokens else torch.float32)

    def mask(self, x: torch.Tensor) -> torch.Tensor | None:
        """Return where tokens are, [B, T] bool; None for samples that are no sequences of tokens."""
        return x >= 0 if self.tokens else None

    def random_batch(self, rows: int, generator: np.random.Generator) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return x and labels for comparisons: normal numbers, probes, or random tokens, some sequences padded."""
        spec = self.to_spec().labels
        if self.probes is not None:
            x: npt.NDArray[Any] = self.probes.draw(rows, generator)
        elif not self.tokens:
            x = generator.standard_normal((rows, *self.input_shape), np.float32)
        else:
            length = self.input_shape[0]
            x = generator.integers(0, self.num_tokens, (rows, length), np.int64)
            lengths = generator.integers(max(1, length // 2), length + 1, rows)
            lengths[0] = length
            x[np.arange(length) >= lengths[:, None]] = PADDING
        if self.task is Task.REGRESSION:
            return x, generator.standard_normal((rows, *spec.shape), np.float32)
        if self.task is Task.NEXT_TOKEN:
            return x, next_tokens(x)
        return x, generator.integers(0, self.num_classes, rows, np.int64)

    @property
    def num_tokens(self) -> int:
        """The size of the vocabulary that x is drawn from."""
        return self.token_input.vocabulary_size if self.token_input else int(getattr(self.front, "num_tokens", self.num_classes))


def predict(part: nn.Module, z: torch.Tensor, mask: torch.Tensor | None) -> Any:
    """Return the outputs of a head or back."""
    return part(z) if mask is None else part(z, mask)


def device_of(module: nn.Module) -> torch.device:
    """Return the device that a module's tensors are on."""
    return next(iter([*module.parameters(), *module.buffers()])).device


def next_tokens(x: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return at each place the token that follows, IGNORED where there is none; x [B, T] with PADDING."""
    following = np.full_like(x, PADDING)
    following[:, :-1] = x[:, 1:]
    return np.where(following == PADDING, IGNORED, following)


def squared_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean over outputs of (output - target)^2 per sample, [B]."""
    return (outputs - targets).square().flatten(1).mean(1)


def sample_losses_of(task: Task) -> SampleLosses:
    """Return the loss of a task."""
    losses: dict[Task, SampleLosses] = {
        Task.CLASSIFICATION: cross_entropy,
        Task.REGRESSION: squared_error,
        Task.NEXT_TOKEN: next_token_losses,
    }
    return losses[task]


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return -log softmax(logits)[label] per sample, [B]."""
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def parameter_specs(module: nn.Module) -> tuple[TensorSpec, ...]:
    """Return name and shape of each trainable tensor, in the order of the flat buffer."""
    return tuple(TensorSpec(name, DType.FLOAT32, tuple(p.shape) or (1,)) for name, p in trained_parameters(module))


def trained_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return names and parameters that require a gradient, in the order of the flat buffer."""
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def moving_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a module's state that training may change: all but those that are frozen."""
    frozen = {name for name, _ in named_frozen(module)}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def infinite_buffers(model: SplitModel) -> frozenset[str]:
    """Return the names, in a checkpoint, of buffers that are not finite before any training: masks that are added to scores."""
    parts = {"front": model.front, "head": model.auxiliary_head, "back": model.back}
    return frozenset(
        f"{part}.{name}"
        for part, module in parts.items()
        for name, buffer in module.named_buffers()
        if buffer.is_floating_point() and not bool(torch.isfinite(buffer).all())
    )


def load_moving_state(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Set what `moving_state` returned.

    Raises:
        RuntimeError: a tensor is missing, unknown or of another shape.

    """
    frozen = {name: value for name, value in module.state_dict().items() if name not in moving_state(module)}
    module.load_state_dict(frozen | state)


def flat_parameters(module: nn.Module) -> Float32Array:
    """Return a copy of all trained parameters as one float32 array."""
    pieces = [p.detach().reshape(-1).float() for _, p in trained_parameters(module)]
    array: Float32Array = torch.cat(pieces).cpu().numpy().copy() if pieces else np.zeros(0, np.float32)
    return array


def load_flat_parameters(module: nn.Module, flat: Float32Array) -> None:
    """Set all trained parameters from one float32 array; raises ValueError if the sizes differ."""
    parameters = [parameter for _, parameter in trained_parameters(module)]
    if flat.size != sum(p.numel() for p in parameters):
        raise ValueError(f"expected {sum(p.numel() for p in parameters)} weights, got {flat.size}")
    source = torch.from_numpy(flat.copy())
    offset = 0
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(source[offset : offset + parameter.numel()].view_as(parameter))
            offset += parameter.numel()
