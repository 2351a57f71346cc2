"""One client step of ResNet-18's front in plain PyTorch, without any network, in this fresh process; started by benchmarks/client.py.

`python benchmarks/torch_step.py backprop|zeroth-order BATCH MICRO_BATCH STEPS` prints a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn


class Front(nn.Module):
    """The 3x3 stem and first block of heron_server.models.families.resnet, written out so that nothing but torch is imported."""

    def __init__(self, width: int = 64, groups: int = 8) -> None:
        super().__init__()
        shapes = ((3, width), (width, width), (width, width))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in shapes)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, width) for _ in shapes)
        self.head = nn.Linear(width * 32 * 32, 10)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return [B] losses."""
        x = torch.relu(self.norms[0](self.convolutions[0](x)))
        hidden = torch.relu(self.norms[1](self.convolutions[1](x)))
        z = torch.relu(x + self.norms[2](self.convolutions[2](hidden)))
        return nn.functional.cross_entropy(self.head(z.flatten(1)), y, reduction="none")


def main() -> int:
    """Take the steps and print what they cost."""
    method, batch_size, micro_batch, steps = sys.argv[1], *map(int, sys.argv[2:5])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Front()
    x, y = torch.randn(batch_size, 3, 32, 32), torch.randint(0, 10, (batch_size,))
    parts = [slice(start, start + micro_batch) for start in range(0, batch_size, micro_batch)]

    def forward() -> float:
        with torch.inference_mode():
            return sum(float(model(x[part], y[part]).sum()) for part in parts) / batch_size

    step = backprop(model, x, y, parts) if method == "backprop" else zeroth_order(model, forward)
    step()
    rows = [{"bare": _seconds(lambda: (forward(), forward())), "step": _seconds(step)} for _ in range(steps)]
    peak = next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"peak_memory_bytes": peak, "steps": rows}))
    return 0


def backprop(model: Front, x: torch.Tensor, y: torch.Tensor, parts: list[slice]) -> Callable[[], object]:
    """Return a step of Adam on the mean loss."""
    optimiser = torch.optim.Adam(model.parameters(), 1e-4)

    def step() -> None:
        optimiser.zero_grad()
        for part in parts:
            (model(x[part], y[part]).sum() / len(x)).backward()
        optimiser.step()

    return step


def zeroth_order(model: Front, forward: Callable[[], float]) -> Callable[[], object]:
    """Return a step along one Rademacher direction over all weights, which are perturbed in place (MeZO, arXiv 2305.17333), forward difference."""
    radius, rate = 1e-3, 1e-7

    def add(seed: int, alpha: float) -> None:
        torch.manual_seed(seed)
        for weights in model.parameters():
            weights.data.add_(torch.randint(0, 2, weights.shape).float() * 2 - 1, alpha=alpha)

    def step() -> None:
        base = forward()
        add(1, radius)
        perturbed = forward()
        add(1, -radius)
        add(1, -rate * (perturbed - base) / radius)

    return step


def _seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Return how long a call takes on the clock, and on this process's processor."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    sys.exit(main())
