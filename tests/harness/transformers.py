"""Tiny transformers of every family that is cut, as folders that transformers reads; weights are drawn at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import BertConfig, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, RobertaConfig

from heron_common.specification.data_specification import DataSpecification, Task
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel

VOCABULARY = 60
_SIZES = {"num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "vocab_size": VOCABULARY}
_DECODER = _SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

CONFIGURATIONS: dict[str, Any] = {
    "gpt2": lambda: GPT2Config(
        n_layer=3, n_embd=16, n_head=2, vocab_size=VOCABULARY, n_positions=32, bos_token_id=1, eos_token_id=2, pad_token_id=0
    ),
    "llama": lambda: LlamaConfig(**_DECODER),
    "mistral": lambda: MistralConfig(**_DECODER, head_dim=4),
    "qwen2": lambda: Qwen2Config(**_DECODER),
    "qwen3": lambda: Qwen3Config(**_DECODER, head_dim=4),
    "bert": lambda: BertConfig(**_SIZES, max_position_embeddings=32),
    "roberta": lambda: RobertaConfig(**_SIZES, max_position_embeddings=34, pad_token_id=1),
}
DECODERS = [name for name in CONFIGURATIONS if name not in ("bert", "roberta")]


def write_configuration(name: str, folder: Path) -> Path:
    """Write a configuration without weights and return its folder."""
    CONFIGURATIONS[name]().save_pretrained(folder / name)
    return folder / name


def next_token(length: int) -> DataSpecification:
    """Return the specification of text whose next token is asked for."""
    return DataSpecification("text", (length,), num_classes=0, task=Task.NEXT_TOKEN, tokens=True)


def three_classes(length: int) -> DataSpecification:
    """Return the specification of text in three classes."""
    return DataSpecification("text", (length,), num_classes=3, tokens=True, class_names=("bad", "fair", "good"))


def build(folder: Path, name: str, data: DataSpecification, cut: str | None = "1", **options: Any) -> SplitModel:
    """Build a tiny split transformer."""
    return build_model(f"hf:{write_configuration(name, folder)}", {"weights": "random", "rank": 2, **options}, data=data, seed=0, cut=cut)
