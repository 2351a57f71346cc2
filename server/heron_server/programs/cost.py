"""What a sample costs on the client, by counting: FLOPs, weights, activation bytes. Never by timing, never per device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from heron_common.algorithm.plan import Plan
from heron_server.models.recomputation import recomputed_blocks
from heron_server.models.split_model import SplitModel, device_of, predict, trained_parameters

PERTURBATION_FLOPS_PER_WEIGHT = 8
"""A Rademacher direction costs about 5 ns a weight where a small convolution runs near 2 GFLOP/s: about eight multiply-adds' time."""

PERTURBATION_SHARE = 0.1
"""Perturbing may cost a tenth of the two forwards it serves."""

MICRO_BATCH_BYTES = 1 << 20
"""Activations of one run stay within 1 MiB, and so do weights for each of its groups: beyond it memory grows and speed does not."""


_SAMPLES = 2
"""Counted together and divided: a normalisation over a single value of a single sample is refused by torch."""


@dataclass(frozen=True)
class ClientCost:
    """Counts for one sample: forward FLOPs of front and head, trainable weights, bytes of the two largest neighbouring activations.

    `recomputed_flops` are those of the forward that a program of gradients runs a second time.
    """

    forward_flops: int
    num_parameters: int
    activation_bytes: int
    recomputed_flops: int = 0

    @property
    def recomputed_share(self) -> float:
        """Of the forward FLOPs, in 256ths: sums of such numbers are exact."""
        return math.ceil(256 * self.recomputed_flops / self.forward_flops) / 256 if self.forward_flops else 0.0


class FlopCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the FLOPs of what runs within it, by torch's own formulas: the total of FlopCounterMode, to the digit.

    FlopCounterMode imports torch._dynamo, which takes longer than all else at the start of a small model's server.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled within; torch would import dynamo to say that it is not wanted here.
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(getattr(function, "overloadpacket", function))
        if formula is None and isinstance(function, torch._ops.OpOverload) and function.namespace != "prim":
            # What has no formula may be made of what has; questions to a tensor, as of its device, are not.
            with self:
                parts = function.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        found = function(*args, **kwargs)
        if formula is not None:
            self.total += formula(*args, **kwargs, out_val=found)
        return found


def client_cost(model: SplitModel, with_head: bool) -> ClientCost:
    """Count one sample's forward through the front, and the head if the client evaluates it."""
    modules = [model.front, model.auxiliary_head] if with_head else [model.front]
    sizes: list[int] = []

    def note(_module: object, _inputs: object, output: object) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        # What has fewer rows than samples is no activation: a table of positions that all samples share.
        tensors = [t for t in outputs if isinstance(t, torch.Tensor) and t.dim() and len(t) == _SAMPLES]
        sizes.extend(t.numel() * t.element_size() // _SAMPLES for t in tensors[:1])

    hooks = [leaf.register_forward_hook(note) for module in modules for leaf in module.modules() if not list(leaf.children())]
    x, y = (
        torch.from_numpy(a).to(device_of(model.front)) for a in model.random_batch(_SAMPLES, np.random.Generator(np.random.Philox(key=0)))
    )
    # torch's fused encoder layers hide their matrix products from the counter.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    counter = FlopCount()
    try:
        with torch.no_grad(), counter, _flops_within(recomputed_blocks(*modules), counter) as recomputed:
            z = model.front(x)
            if with_head:
                model.sample_losses(predict(model.auxiliary_head, z, model.mask(x)), y)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for hook in hooks:
            hook.remove()
    pairs = [a + b for a, b in itertools.pairwise(sizes)] or sizes
    parameters = sum(p.numel() for m in modules for _, p in trained_parameters(m))
    return ClientCost(counter.total // _SAMPLES, parameters, max(pairs), sum(recomputed) // _SAMPLES)


@contextmanager
def _flops_within(modules: list[nn.Module], counter: FlopCount) -> Iterator[list[int]]:
    """Yield a list whose sum will be what a counter counts while these modules run."""
    found: list[int] = []
    hooks = [module.register_forward_pre_hook(lambda *_: found.append(-counter.total)) for module in modules]
    hooks += [module.register_forward_hook(lambda *_: found.append(counter.total)) for module in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def choose_direction_groups(batch_size: int, dimension: int, forward_flops: int) -> int:
    """Return the largest divisor G of the batch whose G perturbations of d weights stay within their share of the step's forwards."""
    budget = PERTURBATION_SHARE * 2 * batch_size * forward_flops
    fitting = [g for g in _divisors(batch_size) if g * dimension * PERTURBATION_FLOPS_PER_WEIGHT <= budget]
    return max(fitting, default=1)


def choose_micro_batch(plan: Plan, activation_bytes: int, num_parameters: int | None) -> int:
    """Return the largest divisor of a group whose activations stay within MICRO_BATCH_BYTES; at least 1, whatever the groups.

    Where whole groups fit, several of them: each has weights of its own, `num_parameters` for front and head together, which stay within
    MICRO_BATCH_BYTES too; None where a run cannot take weights for each group.
    """
    if plan.direction_groups <= 0:
        return 1
    size = plan.group_size
    fitting = [m for m in _divisors(size) if m * activation_bytes <= MICRO_BATCH_BYTES]
    if fitting and plan.perturbs and num_parameters is not None and size in fitting:
        copies = [g for g in _divisors(plan.direction_groups) if g * 4 * num_parameters <= MICRO_BATCH_BYTES]
        fitting += [g * size for g in copies if g * size * activation_bytes <= MICRO_BATCH_BYTES]
    return max(fitting, default=1)


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]
