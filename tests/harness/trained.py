"""One short simulated run of each kind of model, made when a test first asks for it, for tests of what becomes of trained models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heron_cli.simulation.configuration import simulation_config
from heron_cli.simulation.run import simulate
from heron_common.data.reading import SampleReader
from heron_common.data.sources import open_source
from heron_server.exports.trained_model import load_trained
from heron_server.exports.vouching import Vouched
from tests.harness.tokenizers import word_tokenizer
from tests.server.models.token_models import SOURCE as TOKENS_SOURCE
from tests.server.models.user_models import SOURCE

WORDS = " ".join(f"w{number}" for number in range(1, 20))

# Of the digits' 360 test samples, text of 18 words; two rounds, so that there are checkpoints to choose from.
SHORT: dict[str, Any] = {
    "clients": 2,
    "rounds": 2,
    "local_steps": 2,
    "batch_size": 8,
    "keep_checkpoints": 2,
    "warmup_rounds": 0,
    "final_rate_fraction": 1,
}

OPTIONS: dict[str, dict[str, Any]] = {
    "cnn": {"data": "digits", "model_options": "front_widths=2 front_strides=2 hidden=8"},
    "resnet": {"data": "digits", "model": "resnet", "model_options": "width=4 groups=2 blocks=1,1"},
    "user": {"data": "digits", "model": "python:zoo_of_exports:resnet", "cut": "layer1"},
    "gpt2": {"data": "text:{folder}/running.txt", "data_spec": "text:8:next-token", "model": "hf:{folder}/gpt2"},
    "language": {
        "data": "text:{folder}/running.txt",
        "data_spec": "text:8:next-token",
        "model": "python:zoo_of_tokens:language",
        "model_options": "tokenizer={folder}/tokenizer.json",
        "cut": "blocks.0",
        "eval_data": "text:{folder}/running.txt",
    },
    "bert": {"data": "csv:{folder}/rows.csv:text:label", "data_spec": "text:8:low,high", "model": "hf:{folder}/bert"},
}
"""Rates are such that adapters move far enough in two rounds to be missed if they were lost."""

FAST = {"model_options": "weights=random rank=2", "cut": "1", "relative_step": 0.5, "server_learning_rate": 0.05}


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended, the data that it was scored on, and the same as arrays."""

    directory: Path
    summary: dict[str, Any]
    eval_data: str
    samples: Path

    def figures(self, rounds: int = 2) -> tuple[float, float]:
        """Return accuracy and loss after so many rounds, as the run itself found them."""
        row = self.summary["rounds"][rounds - 1]
        return row["test_accuracy"], row["test_loss"]


class TrainedRuns:
    """Runs by name of model, in one folder, which has to be on the path of imports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[str, TrainedRun] = {}
        (folder / "zoo_of_exports.py").write_text(SOURCE)
        (folder / "zoo_of_tokens.py").write_text(TOKENS_SOURCE)
        (folder / "tokenizer.json").write_bytes(word_tokenizer(WORDS, framed=True))
        generator = np.random.default_rng(0)
        (folder / "running.txt").write_text(" ".join(f"w{number}" for number in generator.integers(1, 20, 600)))
        texts = [" ".join(f"w{number}" for number in generator.integers(1, 20, generator.integers(2, 7))) for _ in range(40)]
        (folder / "rows.csv").write_text("\n".join(["text,label", *(f"{t},{('low', 'high')['w1' in t]}" for t in texts)]) + "\n")

    def __getitem__(self, name: str) -> TrainedRun:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def options(self, name: str) -> dict[str, Any]:
        """Return the options of a run, and write what they name."""
        options = {key: value.format(folder=self.folder) for key, value in OPTIONS[name].items()}
        if "hf:" in options.get("model", ""):
            self._write_configuration(name)
            options |= {**FAST, "eval_data": options["data"]}
        return options

    def _make(self, name: str) -> TrainedRun:
        options = self.options(name)
        directory = self.folder / "runs" / name
        config = simulation_config(**SHORT, **options, run_dir=directory)
        summary = simulate(config)
        assert config.run.eval_data is not None
        samples = self.folder / f"{name}.npz"
        trained = load_trained(directory, vouched=Vouched(trusts_code=True))
        reader = SampleReader(open_source(config.run.eval_data), trained.data, trained.model.tokenizer)
        x, y = reader.batch(np.arange(reader.num_examples))
        np.savez(samples, x=x, y=y)
        return TrainedRun(directory, summary, config.run.eval_data, samples)

    def _write_configuration(self, name: str) -> None:
        import transformers

        size = {"vocab_size": 24, "bos_token_id": 1, "eos_token_id": 2}
        config: Any
        if name == "gpt2":
            config = transformers.GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=32, **size)
        else:
            blocks = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
            config = transformers.BertConfig(hidden_size=16, max_position_embeddings=32, **blocks, **size)
        config.save_pretrained(self.folder / name)
        (self.folder / name / "tokenizer.json").write_bytes(word_tokenizer(WORDS, framed=True))
