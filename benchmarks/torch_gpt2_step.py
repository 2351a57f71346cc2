"""One client step of a GPT-2 front with LoRA in plain PyTorch, without any network, in this fresh process; started by benchmarks/gpt2.py.

`python benchmarks/torch_gpt2_step.py inference|zeroth-order|backprop CONFIG FRONT_BLOCKS HEAD_BLOCKS BATCH LENGTH RANK` prints a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2Block


class LowRank(nn.Module):
    """A frozen layer and a trained product of rank r beside it."""

    def __init__(self, layer: nn.Module, rank: int) -> None:
        super().__init__()
        self.layer = layer
        width_in, width_out = layer.weight.shape
        self.a = nn.Parameter(torch.randn(width_in, rank) * 0.02)
        self.b = nn.Parameter(torch.zeros(rank, width_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return W x + 2 b a x."""
        return self.layer(x) + 2 * (x @ self.a) @ self.b


class Front(nn.Module):
    """Embeddings, front blocks, auxiliary blocks and the tied unembedding."""

    def __init__(self, config: GPT2Config, blocks: int, rank: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.places = nn.Embedding(config.n_positions, config.n_embd)
        self.blocks = nn.ModuleList(GPT2Block(config, layer_idx=index) for index in range(blocks))
        self.norm = nn.LayerNorm(config.n_embd)
        for parameter in self.parameters():
            parameter.requires_grad_(False)
        for block in self.blocks:
            block.attn.c_attn = LowRank(block.attn.c_attn, rank)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the mean next-token loss of each sequence."""
        length = ids.shape[1]
        hidden = self.tokens(ids) + self.places(torch.arange(length))
        mask = torch.triu(torch.full((length, length), -1e9), 1)[None, None]
        for block in self.blocks:
            hidden = block(hidden, attention_mask=mask)
        logits = self.norm(hidden) @ self.tokens.weight.t()
        losses = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return losses.view(len(ids), -1).mean(1)


def main() -> int:
    """Take three steps and print what they cost."""
    method, folder = sys.argv[1:3]
    front_blocks, head_blocks, batch_size, length, rank = map(int, sys.argv[3:])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = GPT2Config.from_pretrained(folder)
    config._attn_implementation = "eager"
    model = Front(config, front_blocks + head_blocks, rank).eval()
    ids = torch.randint(0, config.vocab_size, (batch_size, length))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def inference() -> None:
        with torch.inference_mode():
            model(ids)

    def zeroth_order() -> None:
        with torch.no_grad():
            base = model(ids).mean()
            directions = [torch.randint(0, 2, p.shape).float() * 2 - 1 for p in trained]
            for p, u in zip(trained, directions, strict=True):
                p.add_(u, alpha=1e-3)
            slope = float((model(ids).mean() - base) / 1e-3)
            for p, u in zip(trained, directions, strict=True):
                p.add_(u, alpha=-1e-3 - 1e-6 * slope)

    optimiser = torch.optim.Adam(trained, 1e-4)

    def backprop() -> None:
        optimiser.zero_grad(set_to_none=True)
        model(ids).mean().backward()
        optimiser.step()

    steps: dict[str, Callable[[], None]] = {"inference": inference, "zeroth-order": zeroth_order, "backprop": backprop}
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        steps[method]()
        seconds.append(time.perf_counter() - started)
    peak = next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"peak_memory_bytes": peak, "step_seconds": min(seconds)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
