"""Adam without what torch's own costs in Python on a small back, where that is most of a step; bit for bit the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_MOST_WEIGHTS = 1 << 18
"""Of a group that is stepped at once; beyond it operations cost more than calling them, and the denominators of all tensors at once would be another copy."""


class SmallAdam(torch.optim.Adam):
    """Adam (arXiv 1412.6980), and AdamW (arXiv 1711.05101) with `decoupled_weight_decay`, whose small groups on the CPU take one call for each operation."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step every group; torch's operations on each tensor, in torch's order."""
        if closure is not None or not all(_is_small(group["params"]) for group in self.param_groups):
            return super().step(closure)
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step_group(group, parameters)
        return None

    def _step_group(self, group: dict[str, Any], parameters: list[torch.Tensor]) -> None:
        (beta1, beta2), rate, decay = group["betas"], group["lr"], group["weight_decay"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        states = [self._state_of(parameter) for parameter in parameters]
        firsts, seconds = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        steps = []
        for state in states:
            state["step"] += 1
            steps.append(state["step"].item())
        if decay and group["decoupled_weight_decay"]:
            torch._foreach_mul_(parameters, 1 - rate * decay)
        elif decay:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
        torch._foreach_lerp_(firsts, gradients, 1 - beta1)
        torch._foreach_mul_(seconds, beta2)
        torch._foreach_addcmul_(seconds, gradients, gradients, 1 - beta2)
        denominators = torch._foreach_sqrt(seconds)
        torch._foreach_div_(denominators, [(1 - beta2**step) ** 0.5 for step in steps])
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_addcdiv_(parameters, firsts, denominators, [-(rate / (1 - beta1**step)) for step in steps])

    def _state_of(self, parameter: torch.Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        return state


def _is_small(parameters: list[torch.Tensor]) -> bool:
    return all(p.device.type == "cpu" and not p.is_complex() for p in parameters) and sum(p.numel() for p in parameters) <= _MOST_WEIGHTS
