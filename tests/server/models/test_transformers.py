"""Transformers cut between blocks: equal to the whole, in programs too; what is frozen, what is trained, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heron_common.algorithm.plan_checks import algorithm_mistakes
from heron_common.algorithm.presets import preset
from heron_common.errors import ConfigurationError
from heron_common.numerics.tensors import DType, num_parameters
from heron_common.specification.data_specification import IGNORED, PADDING, Task
from heron_common.specification.model_spec import ProgramKind
from heron_server.models.split_model import SplitModel, next_tokens, predict
from heron_server.programs.compile import compile_function
from heron_server.programs.export import export
from heron_server.programs.parity import check_outputs
from heron_server.programs.publish import complete_algorithm
from heron_server.training.evaluation import Score
from tests.harness.transformers import DECODERS, VOCABULARY, build, next_token, three_classes, write_configuration


def whole_logits(model: SplitModel, x: torch.Tensor) -> torch.Tensor:
    mask = x >= 0
    assert model.whole is not None
    with torch.no_grad():
        logits: torch.Tensor = model.whole(input_ids=x.clamp_min(0), attention_mask=mask.long()).logits
    return logits


def sequences(model: SplitModel, rows: int, seed: int = 3) -> torch.Tensor:
    """Random tokens but the first three, which mean something to classifiers; some sequences are padded."""
    x, _ = model.random_batch(rows, np.random.Generator(np.random.Philox(key=seed)))
    return torch.from_numpy(np.where((x >= 0) & (x < 3), 3, x))


@pytest.mark.parametrize("name", DECODERS)
def test_front_and_back_of_a_decoder_are_the_whole(name: str, tmp_path: Path) -> None:
    model = build(tmp_path, name, next_token(7), cut="2", head_blocks=1)
    x = sequences(model, 4)
    with torch.no_grad():
        hidden, unembedding = predict(model.back, model.front(x), model.mask(x))
    expected = whole_logits(model, x)
    assert torch.allclose((hidden @ unembedding.t())[x >= 0], expected[x >= 0], atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "roberta"])
def test_front_and_back_of_a_classifier_are_the_whole(name: str, tmp_path: Path) -> None:
    model = build(tmp_path, name, three_classes(7), cut="0" if name == "bert" else "1")
    x = sequences(model, 5)
    with torch.no_grad():
        outputs = predict(model.back, model.front(x), model.mask(x))
    pad = 1 if name == "roberta" else 0
    mask = x >= 0
    assert model.whole is not None
    with torch.no_grad():
        expected = model.whole(input_ids=torch.where(mask, x, pad), attention_mask=mask.long()).logits
    assert outputs.shape == (5, 3) and torch.allclose(outputs, expected, atol=1e-5)


PROGRAMS: list[tuple[str, str, int, dict[str, Any]]] = [
    ("gpt2", "next_token", 6, {"head_blocks": 1}),
    ("gpt2", "next_token", 9, {"base": "int8", "adapter": "none"}),
    ("llama", "three_classes", 9, {"base": "bfloat16", "adapter": "vera", "cut": "2"}),
    ("bert", "three_classes", 6, {"adapter": "ia3", "cut": "2"}),
]
MORE_PROGRAMS: list[tuple[str, str, int, dict[str, Any]]] = [
    *((name, "next_token", length, {}) for name in ("llama", "mistral", "qwen2", "qwen3") for length in (6, 9)),
    *((name, "three_classes", length, {}) for name in ("bert", "roberta", "gpt2") for length in (6, 9)),
    ("bert", "three_classes", 9, {"base": "int8"}),
]


def check_programs(name: str, task: str, length: int, options: dict[str, Any], folder: Path) -> None:
    data = next_token(length) if task == "next_token" else three_classes(length)
    model = build(folder, name, data, **options)
    for kind in (ProgramKind.LOSS, ProgramKind.GRADIENT):
        assert check_outputs(model, kind, program=export(compile_function(model, kind, micro_batch=2)), micro_batch=2, seed=1) < 1e-5


@pytest.mark.parametrize(("name", "task", "length", "options"), PROGRAMS)
def test_programs_equal_torch_gradients_included(name: str, task: str, length: int, options: dict[str, Any], tmp_path: Path) -> None:
    check_programs(name, task, length, options, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task", "length", "options"), MORE_PROGRAMS)
def test_programs_of_every_family_at_two_lengths(name: str, task: str, length: int, options: dict[str, Any], tmp_path: Path) -> None:
    check_programs(name, task, length, options, tmp_path)


def test_with_an_adapter_only_adapters_norms_and_the_last_layer_are_trained(tmp_path: Path) -> None:
    model = build(tmp_path, "gpt2", next_token(6))
    front = {name for name, p in model.front.named_parameters() if p.requires_grad}
    assert front and all("lora_" in name for name in front)
    back = {name for name, p in model.back.named_parameters() if p.requires_grad}
    assert {name for name in back if "lora_" not in name} == {"norm.weight", "norm.bias"}
    spec = model.to_spec()
    # c_attn of one block: A [2, 16] and B [48, 2].
    assert num_parameters(spec.client_model) == 2 * 16 + 48 * 2
    # The tied unembedding is the front's embedding: it is stored once.
    assert sum(t.shape == (VOCABULARY, 16) for t in spec.base) == 1


def test_without_an_adapter_blocks_are_trained_and_embeddings_are_not(tmp_path: Path) -> None:
    model = build(tmp_path, "bert", three_classes(6), adapter="none")
    trained = {name for name, p in model.front.named_parameters() if p.requires_grad}
    assert trained and all(name.startswith("blocks.") for name in trained)
    assert all(not p.requires_grad for name, p in model.front.named_parameters() if name.startswith("embedding."))


def test_a_narrow_base_is_what_the_server_computes_with_too(tmp_path: Path) -> None:
    wide, narrow = (build(tmp_path, "gpt2", next_token(6), base=base) for base in ("float32", "int8"))
    matrices = [(a, b) for a, b in zip(wide.frozen, narrow.frozen, strict=True) if a.value.dim() > 1]
    assert {b.spec.dtype for _, b in matrices} == {DType.INT8}
    for a, b in matrices:
        q, scales = b.stored
        assert torch.equal(b.value, q.float() * scales[:, None])
        # Half a step of the row's scale is the most that rounding may move a weight.
        assert bool(((a.value - b.value).abs() <= scales[:, None] * 0.5001).all())
    assert all(b.spec.dtype is DType.FLOAT32 for b in narrow.frozen if b.value.dim() < 2)
    # What rounding does to activations is said: nothing for float32, something below a few per cent for int8.
    x = sequences(wide, 2)
    with torch.no_grad():
        assert 0 < float((wide.front(x) - narrow.front(x)).abs().max()) < 0.1 * float(wide.front(x).abs().max())
    assert wide.base_error == 0.0 and 0 < narrow.base_error < 0.1


def test_a_transformers_spec_says_what_travels(tmp_path: Path) -> None:
    spec = build(tmp_path, "llama", next_token(6)).to_spec()
    assert spec.cut.shape == (6, 16) and spec.labels.shape == (6,) and [c.name for c in spec.context] == ["mask"]
    assert build(tmp_path, "bert", three_classes(6)).to_spec().labels.shape == ()


def test_next_tokens_by_hand() -> None:
    x = np.array([[5, 6, 7, PADDING], [8, PADDING, PADDING, PADDING], [1, 2, 3, 4]])
    expected = [[6, 7, IGNORED, IGNORED], [IGNORED] * 4, [2, 3, 4, IGNORED]]
    assert next_tokens(x).tolist() == expected


def test_scores_of_next_tokens_count_tokens_not_sequences(tmp_path: Path) -> None:
    model = build(tmp_path, "gpt2", next_token(6))
    x = sequences(model, 6)
    labels = torch.from_numpy(next_tokens(x.numpy()))
    with torch.no_grad():
        outputs = predict(model.back, model.front(x), model.mask(x))
        logits = outputs[0] @ outputs[1].t()
    score = Score(model)
    score.add((outputs[0][:2], outputs[1]), labels[:2])
    score.add((outputs[0][2:], outputs[1]), labels[2:])
    found, counted = score.result(), labels != IGNORED
    losses = torch.nn.functional.cross_entropy(logits[counted], labels[counted], reduction="none").double()
    assert found.loss == pytest.approx(float(losses.mean()), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(float(losses.mean())), rel=1e-5)
    assert found.accuracy == pytest.approx(float((logits.argmax(-1) == labels)[counted].double().mean()))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"cut": "3"}, r"--cut of this model is a number of blocks from 0 to 2, not '3'"),
        ({"cut": "layer1"}, "not 'layer1'"),
        ({"head_blocks": 3}, "head_blocks 3 are more than the 2 blocks behind the cut"),
        ({"adapter": "prefix"}, "adapter"),
        ({"targets": "nothing_like_it"}, "adapter=lora does not fit this model"),
        ({"base": "int4"}, "base"),
    ],
)
def test_options_that_do_not_work_are_refused_by_name(arguments: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        build(tmp_path, "gpt2", next_token(6), **arguments)


def test_more_tokens_than_the_model_reads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="reads at most 32 tokens, but the data specification asks for 33"):
        build(tmp_path, "llama", next_token(33))


def test_a_folder_without_weights_is_refused_unless_random_ones_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"holds no weights that transformers can use .* add weights=random"):
        build(tmp_path, "gpt2", next_token(6), weights="pretrained")


def test_an_architecture_that_is_not_known_is_named(tmp_path: Path) -> None:
    folder = write_configuration("gpt2", tmp_path)
    text = (folder / "config.json").read_text().replace('"model_type": "gpt2"', '"model_type": "bloom"')
    (folder / "config.json").write_text(text.replace("GPT2LMHeadModel", "BloomForCausalLM"))
    from heron_server.models.registry import build_model

    with pytest.raises(ConfigurationError, match="architecture 'bloom' is not one that is cut by blocks"):
        build_model(f"hf:{folder}", {"weights": "random"}, data=next_token(6), seed=0, cut="1")


def test_a_model_of_the_hub_that_cannot_be_fetched_names_the_folder_option(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    from heron_server.models.registry import build_model

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match=r"no folder here, not in the hub's cache.*--model hf:FOLDER"):
        build_model("hf:no-such-owner/no-such-model", {}, data=next_token(6), seed=0, cut="1")


def test_a_frozen_front_cannot_be_trained(tmp_path: Path) -> None:
    model = build(tmp_path, "bert", three_classes(6), cut="0")
    with pytest.raises(ConfigurationError, match="every weight of it is frozen: choose an adapter or preset frozen"):
        complete_algorithm(preset("heron"), model)
    frozen, _ = complete_algorithm(preset("frozen"), model)
    assert not algorithm_mistakes(frozen) and model.task is Task.CLASSIFICATION


# --- odd configurations


def edited(folder: Path, name: str, **changes: Any) -> str:
    """Write a configuration with other values and return the model's name."""
    path = write_configuration(name, folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return f"hf:{path.parent}"


@pytest.mark.parametrize(("pad_token", "most"), [(3, 30), (0, 33), (-1, 32)])
def test_places_are_counted_from_behind_the_padding_token_on(pad_token: int | None, most: int, tmp_path: Path) -> None:
    from heron_server.models.registry import build_model

    model = edited(tmp_path, "roberta", pad_token_id=pad_token)
    assert build_model(model, {"weights": "random"}, data=three_classes(most), seed=0, cut="1").to_spec().cut.shape == (most, 16)
    with pytest.raises(ConfigurationError, match=f"reads at most {most} tokens, but the data specification asks for {most + 1}"):
        build_model(model, {"weights": "random"}, data=three_classes(most + 1), seed=0, cut="1")


@pytest.mark.parametrize(("name", "pad_token"), [("llama", -1), ("gpt2", None), ("bert", -1)])
def test_a_padding_token_that_is_none_is_chosen(name: str, pad_token: int | None, tmp_path: Path) -> None:
    from heron_server.models.registry import build_model

    build_model(edited(tmp_path, name, pad_token_id=pad_token), {"weights": "random"}, data=three_classes(6), seed=0, cut="1")


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("bert", {"model_type": "vit"}, "architecture 'vit' is not one that is cut by blocks"),
        ("bert", {"model_type": "clip"}, "architecture 'clip' is not one that is cut by blocks"),
        ("bert", {"hidden_act": "nothing"}, "holds no"),
        ("bert", {"num_attention_heads": 5}, "holds no"),
        ("llama", {"hidden_size": "wide"}, "holds no"),
        ("bert", {"sliding_window": "abc"}, "contradicts itself"),
        ("roberta", {"type_vocab_size": 0}, "contradicts itself"),
        ("gpt2", {"vocab_size": 0}, "contradicts itself"),
        ("bert", {"is_decoder": True}, "blocks are called in a way unknown here"),
    ],
)
def test_configurations_that_cannot_be_used_are_one_sentence(name: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    from heron_server.models.registry import build_model

    with pytest.raises(ConfigurationError) as caught:
        build_model(edited(tmp_path, name, **changes), {"weights": "random"}, data=three_classes(6), seed=0, cut="1")
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": {"type": "nothing"}}'])
def test_a_tokenizer_that_cannot_be_read_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    from heron_server.models.registry import build_model

    folder = write_configuration("bert", tmp_path)
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match="holds no tokenizer that transformers can use"):
        build_model(f"hf:{folder}", {"weights": "random"}, data=three_classes(6), seed=0, cut="1")
