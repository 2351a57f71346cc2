"""An estimate of a client's peak memory from counts alone, for choosing where to cut before anything is compiled or run."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from heron_common.numerics.base_layout import BaseLayout, base_layout
from heron_common.numerics.tensors import DType, num_parameters
from heron_server.models.base import named_frozen
from heron_server.models.split_model import SplitModel, predict
from heron_server.programs.cost import client_cost

PROCESS_BYTES = 71_000_000
"""A client process that trains next to nothing: Python, numpy, ONNX Runtime, gRPC and their imports."""

TOKENS_BYTES = 5_000_000
"""What a program over a vocabulary takes beyond: hundreds of nodes, of which ONNX Runtime keeps a session."""

WEIGHT_COPIES = 2.05
"""A client has two buffers of the trained weights; a round's weights come in and go out through them."""

ACTIVATION_COPIES = 2.0
"""ONNX Runtime holds the two largest neighbouring activations of one sample, and scratch space of about as much for convolutions."""

TOKENS_ACTIVATION_COPIES = 3.0
"""In a transformer the residual, queries, keys and values are alive together."""

BEYOND_COPIES = 4.0
"""What attention over long sequences has beyond the outputs of layers: scores, their mask, their softmax, their transposed copy."""

WIDENED_BYTES, WIDENED_COPIES = 16_000_000, 1.0
"""Of a base in bfloat16 or int8: the largest matrix behind the embedding as float32, and the others that are widened meanwhile."""


@dataclass(frozen=True)
class ClientMemory:
    """What a client holds at its peak with micro-batches of one sample.

    Attributes:
        trained: numbers of front and head that are trained.
        base_bytes: of the file of frozen weights, which is mapped; all of it counts, for sooner or later every page is read.
        widened_bytes: of the largest frozen matrix that is stored narrowly and widened whole, as float32; 0 if there is none.
        activation_bytes: of the two largest neighbouring outputs of layers, of one sample.
        beyond_bytes: by which the largest output of an operation between layers exceeds the mean of these two, in models of tokens.
        tokens: whether samples are sequences of tokens.

    """

    trained: int
    base_bytes: int
    _: KW_ONLY
    widened_bytes: int
    activation_bytes: int
    beyond_bytes: int
    tokens: bool

    @property
    def peak_bytes(self) -> int:
        """Process + base + widened matrices + trained weights + activations; see the constants.

        Fitted to whole client processes (VmHWM) of `heron`: fronts of ResNet-18 and of plain convolutions with 0.08 to 11 million weights, which peaked
        at 70 to 164 MB, and fronts of GPT-2 with 29 to 664 MB of base, which peaked at 110 to 756 MB (128 tokens in three forms, most of them in
        docs/results/gpt2.md; 512 tokens on the smallest alone), within 5 % of each. Left out: data that the client keeps
        in memory, a tokenizer, and kernels that keep more of a library's pages (the same client took 20 MB more on one machine).
        """
        process = PROCESS_BYTES + (TOKENS_BYTES if self.tokens else 0)
        widened = WIDENED_BYTES + WIDENED_COPIES * self.widened_bytes if self.widened_bytes else 0
        copies = TOKENS_ACTIVATION_COPIES if self.tokens else ACTIVATION_COPIES
        activations = copies * self.activation_bytes + BEYOND_COPIES * self.beyond_bytes
        return int(process + self.base_bytes + widened + WEIGHT_COPIES * 4 * self.trained + activations)


def client_memory(model: SplitModel) -> ClientMemory:
    """Count what a client of a model holds; its tensors may be without values."""
    spec = model.to_spec()
    layout = base_layout(spec.base)
    embedded = {frozen.spec.name for frozen in model.frozen if len(frozen.value) == model.num_tokens} if model.tokens else set()
    widened = [
        4 * tensor.num_elements
        for tensor in spec.base
        if tensor.dtype is not DType.FLOAT32 and tensor.name not in embedded and len(tensor.shape) > 1
    ]
    activations = client_cost(model, with_head=True).activation_bytes
    beyond = max(0, largest_output(model) - activations // 2) if model.tokens else 0
    trained = num_parameters(spec.client_model) + num_parameters(spec.auxiliary_head)
    return ClientMemory(
        trained,
        layout.total_bytes,
        widened_bytes=max(widened, default=0),
        activation_bytes=activations,
        beyond_bytes=beyond,
        tokens=model.tokens,
    )


def frozen_front_bytes(model: SplitModel) -> int:
    """Return how many bytes of the base are the front's own, as they are stored."""
    wanted = {id(value) for _, value in named_frozen(model.front)}
    indices = {index for index, frozen in enumerate(model.frozen) if id(frozen.value) in wanted}
    layout: BaseLayout = base_layout(model.to_spec().base)
    return sum(region.size_bytes for region in layout.regions if int(region.name.split(".")[1]) in indices)


def largest_output(model: SplitModel) -> int:
    """Return the bytes of the largest output of an operation, of one sample; attention within a layer's own forward counts too."""
    rows = 2
    x, y = (torch.from_numpy(a) for a in model.random_batch(rows, np.random.Generator(np.random.Philox(key=0))))
    with torch.no_grad(), _Outputs() as outputs:
        model.sample_losses(predict(model.auxiliary_head, model.front(x), model.mask(x)), y)
    return max(outputs.sizes, default=0) // rows


class _Outputs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the bytes of every tensor that an operation makes anew."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            values = made if isinstance(made, tuple | list) else (made,)
            self.sizes.extend(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))
        return made
