"""Whole runs with texts of two lengths: they learn, short texts cost short uploads, and held-out texts are scored as at one length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heron_cli.evaluate import evaluate_checkpoint
from heron_cli.simulation.clients import client_name, shares
from heron_cli.simulation.configuration import simulation_config
from heron_cli.simulation.run import simulate
from heron_common.algorithm.presets import PRESETS
from heron_common.data.batch_order import BatchOrder
from heron_common.data.partition import Partition
from heron_common.data.reading import SampleReader
from heron_common.data.shard_split import split_shard
from heron_common.data.sources import open_source
from heron_common.ids import RoundReference
from heron_common.specification.data_specification import PADDING
from heron_server.exports.trained_model import load_trained
from heron_server.training.evaluation import Score, evaluate
from tests.harness.cluster import Cluster, wait_for_exit
from tests.harness.tokenizers import word_tokenizer

WORDS = " ".join(f"w{number}" for number in range(16))
SHAPE: dict[str, Any] = {"clients": 2, "local_steps": 4, "batch_size": 8, "warmup_rounds": 0, "keep_checkpoints": 100, "seed": 3}
LENGTHS, WIDTH, HELD_OUT = (6, 16), 16, 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and a file of texts: words that count upwards, from the lower or the upper half of sixteen, the most of them short."""
    import transformers

    made = tmp_path_factory.mktemp("texts")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(120):
        first, count = int(generator.integers(0, 8)), int(generator.choice([2, 3, 4, 10, 13], p=[0.3, 0.3, 0.2, 0.1, 0.1]))
        words = [f"w{8 * (number % 2) + (first + place) % 8}" for place in range(count)]
        rows.append(json.dumps({"text": " ".join(words), "half": ("low", "high")[number % 2]}))
    (made / "rows.jsonl").write_text("\n".join(rows) + "\n")
    size = {"vocab_size": 24, "bos_token_id": 1, "eos_token_id": 2}
    blocks = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32}
    transformers.GPT2Config(n_layer=2, n_embd=WIDTH, n_head=2, n_positions=32, **size).save_pretrained(made / "gpt2")
    transformers.BertConfig(hidden_size=WIDTH, **blocks, **size).save_pretrained(made / "bert")
    for name in ("gpt2", "bert"):
        (made / name / "tokenizer.json").write_bytes(word_tokenizer(WORDS, framed=True))
    return made


def options(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    task = {"gpt2": "next-token", "bert": "low,high"}[name]
    source = f"jsonl:{folder / 'rows.jsonl'}:text" + (":half" if name == "bert" else "")
    return {
        **SHAPE,
        "model": f"hf:{folder / name}",
        "cut": "1",
        "model_options": "weights=random rank=2 back=full",
        "data": source,
        "eval_data": source,
        "data_spec": f"text:{','.join(map(str, LENGTHS))}:{task}",
        "server_learning_rate": {"gpt2": 0.03, "bert": 0.01}[name],
        "held_out": HELD_OUT,
        "preset": "heron",
        **changes,
    }


def expected_activation_bytes(given: dict[str, Any], reader: SampleReader, client: int) -> int:
    """Return the bytes of a client's activations over a run, batch by batch."""
    lengths = reader.lengths()
    assert lengths is not None
    training = split_shard(SHAPE["seed"], client_name(client), num_examples=reader.num_examples, fraction=HELD_OUT).training
    total = 0
    for index in range(given["rounds"]):
        order = BatchOrder(
            SHAPE["seed"],
            client_name(client),
            round_reference=RoundReference(index, 0),
            num_examples=len(training),
            batch_size=8,
            num_steps=4,
            lengths=lengths[training],
        )
        drawn = [order.draw(step).length for step in range(4)]
        total += sum(
            8 * length * WIDTH * 4 for step, length in enumerate(drawn) if step % PRESETS[given["preset"]].plan.upload_interval == 0
        )
    return total


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_a_run_learns_and_its_uploads_are_as_long_as_its_texts(folder: Path, name: str, tmp_path: Path) -> None:
    given = options(folder, name, rounds=12, run_dir=tmp_path / "run")
    summary = simulate(simulation_config(**given))
    first, last = summary["rounds"][0], summary["rounds"][-1]
    # Who knows but a token's half of the words is right in an eighth of 510 places, who knows nothing in half of 120 texts: five deviations more.
    assert last["round_index"] == 11 and last["test_accuracy"] > {"gpt2": 0.2, "bert": 0.73}[name]
    assert last["test_loss"] < first["test_loss"] - 0.2 and last["local_loss"] is not None
    trained = load_trained(tmp_path / "run")
    assert trained.data.lengths == LENGTHS and trained.model.lengths == LENGTHS
    source = open_source(given["data"])
    readers = [SampleReader(part, trained.data, trained.model.tokenizer) for part in shares(source, Partition(), 2)]
    for client, reader in enumerate(readers):
        assert summary["clients"][client_name(client)]["bytes_up"]["activations"] == expected_activation_bytes(given, reader, client)
    report = evaluate_checkpoint(tmp_path / "run", given["data"])
    assert (report["accuracy"], report["loss"]) == (last["test_accuracy"], pytest.approx(last["test_loss"], rel=1e-9))
    # What the round scored are the weights that it started from.
    before = load_trained(tmp_path / "run", 11)
    total = Score(before.model)
    for client, part in enumerate(shares(source, Partition(), 2)):
        kept = split_shard(SHAPE["seed"], client_name(client), num_examples=part.num_examples, fraction=HELD_OUT).held_out
        reader = SampleReader(part.restricted(kept), before.data, before.model.tokenizer)
        evaluate(before.model, reader, on_batch=total.add)
    assert last["federated_examples"] == total.result().num_examples > 8
    assert last["federated_loss"] == pytest.approx(total.result().loss, rel=1e-4)


VARIANTS = [(name, preset) for name in ("gpt2", "bert") for preset in (*PRESETS, "heron shuffled", "heron int8")]
# The loss of a random classifier's back hardly depends on a front of rank 2: at one length too no radius passes the gate.
VARIANTS.remove(("bert", "heron-server-loss"))
# For the next token there is no small head behind a block, and fronts of two blocks have no loss within a pair of them.
VARIANTS = [variant for variant in VARIANTS if variant not in {("gpt2", "blockwise"), ("gpt2", "pairs"), ("bert", "pairs")}]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "preset"), VARIANTS)
def test_every_preset_finishes_with_two_lengths(folder: Path, name: str, preset: str, tmp_path: Path) -> None:
    chosen, _, extra = preset.partition(" ")
    more: dict[str, Any] = {"shuffled": {"server_schedule": "shuffled"}, "int8": {"wire_dtype": "int8"}}.get(extra, {})
    # An adapter's base keeps its norms frozen.
    more |= {"train_weights": "all"} if chosen == "hybrid" else {}
    summary = simulate(simulation_config(**options(folder, name, rounds=2, preset=chosen, run_dir=tmp_path / "run", **more)))
    assert [row["updates"] for row in summary["rounds"]] == [2, 2] and summary["diverged_round"] is None
    whole = options(folder, name, rounds=2, preset=chosen, run_dir=tmp_path / "whole", **more)
    at_one = simulate(simulation_config(**{**whole, "data_spec": whole["data_spec"].replace("6,16", "16")}))
    for client in ("client-0", "client-1"):
        up, longer = (one["clients"][client]["bytes_up"]["activations"] for one in (summary, at_one))
        assert 0.3 < up / longer < 0.9


def peak_of_a_client(cluster: Cluster, folder: Path, lengths: str) -> int:
    """Return the peak memory of a client process that trains on texts of up to 128 tokens, most of them shorter."""
    model = {
        "model": f"hf:{folder}",
        "cut": "3",
        "model_options": "weights=random head_blocks=1",
        "data_spec": f"text:{lengths}:next-token",
    }
    server = cluster.server(
        **model, clients=1, rounds=3, local_steps=6, batch_size=4, micro_batch=1, direction_groups=4, warmup_rounds=0, eval_data=None
    )
    client = cluster.client(0, 1, data=f"npz:{folder / 'tokens.npz'}")
    assert [wait_for_exit(client, 600), wait_for_exit(server)] == [0, 0]
    return int(cluster.summary()["clients"]["client-0"]["peak_memory_bytes"])


@pytest.mark.slow
def test_further_lengths_add_little_to_a_clients_memory(tmp_path: Path) -> None:
    from transformers import GPT2Config

    # A vocabulary of 32 blocks: a graph of many nodes, which is what a program's memory is made of beside its activations.
    GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=16384, bos_token_id=1, eos_token_id=2).save_pretrained(tmp_path / "model")
    generator = np.random.default_rng(0)
    x = generator.integers(0, 16384, (60, 128))
    x[np.arange(128) >= np.repeat([20, 50, 128], 20)[:, None]] = PADDING
    np.savez(tmp_path / "model" / "tokens.npz", x=x)
    peaks = []
    for lengths in ("128", "32,64,128"):
        with Cluster(tmp_path / lengths) as cluster:
            peaks.append(peak_of_a_client(cluster, tmp_path / "model", lengths))
    print("peak memory with one length and with three, MB:", *(round(peak / 1e6, 1) for peak in peaks))
    assert peaks[1] < peaks[0] + 5e6
