"""Models of users that take tokens: cut like any other, the mask known on both sides, every program equal to the model; what cannot work is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heron_cli.cli import main
from heron_cli.simulation.configuration import simulation_config
from heron_cli.simulation.run import simulate
from heron_common.data.specification import parse_specification
from heron_common.errors import ConfigurationError, DataError
from heron_common.specification.data_specification import IGNORED, PADDING, Task
from heron_common.specification.model_spec import ProgramKind
from heron_server.exports.trained_model import load_trained
from heron_server.exports.vouching import Vouched
from heron_server.models.probes import Probes
from heron_server.models.registry import build_model
from heron_server.models.split_model import SplitModel, predict
from heron_server.models.vocabulary_loss import most_likely, next_token_losses
from heron_server.programs.compile import compile_function
from heron_server.programs.export import export
from heron_server.programs.parity import check_outputs
from tests.harness.tokenizers import word_tokenizer
from tests.server.models.token_models import SOURCE

NEXT, CLASSES, NUMBERS = "text:6:next-token", "text:6:3", "text:6:regression:2"


@pytest.fixture(autouse=True)
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory with `tokens_zoo.py` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "tokens_zoo.py").write_text(SOURCE)
    yield tmp_path
    sys.modules.pop("tokens_zoo", None)


def build(name: str, data: str, cut: str | None, **options: Any) -> SplitModel:
    return build_model(f"python:tokens_zoo:{name}", {"vocabulary_size": "30", **options}, data=parse_specification(data), seed=0, cut=cut)


def refusal(name: str, data: str, cut: str | None, **options: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        build(name, data, cut, **options)
    sentence = str(caught.value)
    assert "\n" not in sentence and not sentence.endswith(".")
    return sentence


def random(model: SplitModel, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = model.random_batch(rows, np.random.Generator(np.random.Philox(key=3)))
    return torch.from_numpy(x), torch.from_numpy(y)


def outputs(model: SplitModel, x: torch.Tensor) -> Any:
    with torch.no_grad():
        return predict(model.back.eval(), model.front(x), model.mask(x))


@pytest.mark.parametrize("cut", ["wte", "drop", "blocks.0", "norm"])
def test_a_language_model_is_the_whole_again_at_every_place(cut: str) -> None:
    model = build("language", NEXT, cut)
    x, y = random(model)
    assert (x == PADDING).any() and model.whole is not None
    with torch.no_grad():
        logits = model.whole(x.clamp_min(0))
    assert torch.allclose(outputs(model, x), logits, atol=1e-5)
    naive = [
        torch.nn.functional.cross_entropy(row[wanted != IGNORED], wanted[wanted != IGNORED]) for row, wanted in zip(logits, y, strict=True)
    ]
    assert torch.allclose(model.sample_losses(logits, y), torch.stack(naive), atol=1e-5)
    assert torch.equal(most_likely(logits), logits.argmax(-1))
    assert {"wte.weight", "unembed.weight"} <= {*model.front.state_dict(), *model.back.state_dict()}


def test_logits_and_an_unembedding_have_the_same_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, unembedding = torch.randn(2, 5, 4, generator=generator), torch.randn(7, 4, generator=generator)
    labels = torch.tensor([[1, 2, IGNORED, 6, 0], [IGNORED] * 5])
    dense = hidden @ unembedding.t()
    assert torch.allclose(next_token_losses(dense, labels), next_token_losses((hidden, unembedding), labels), atol=1e-6)
    assert float(next_token_losses(dense, labels)[1]) == 0
    assert torch.equal(most_likely(dense), most_likely((hidden, unembedding)))


@pytest.mark.parametrize("cut", ["embedding", "first"])
def test_a_mask_acts_on_both_sides_of_the_cut(cut: str) -> None:
    one, other = (build("encoder", CLASSES, cut, pad_token=token) for token in ("0", "7"))
    x, _ = random(one)
    assert torch.allclose(outputs(one, x), outputs(other, x), atol=1e-5), "what stands behind the end made a difference"
    shorter = x[1:2, :3].clamp_min(0)
    alone = torch.full((1, 6), PADDING)
    alone[:, :3] = shorter
    assert one.whole is not None
    with torch.no_grad():
        expected = one.whole(shorter, attention_mask=torch.ones(1, 3, dtype=torch.int64))
    assert torch.allclose(outputs(one, alone), expected, atol=1e-5)


def test_padding_is_a_token_of_ones_choice_where_forward_takes_no_mask() -> None:
    model = build("bag", NUMBERS, "embedding", pad_token="7")
    x = torch.tensor([[3, 4, 5, PADDING, PADDING, PADDING]])
    assert model.whole is not None and model.task is Task.REGRESSION
    with torch.no_grad():
        expected = model.whole(torch.tensor([[3, 4, 5, 7, 7, 7]]))
    assert torch.allclose(outputs(model, x), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "data", "cut", "kinds"),
    [
        ("language", NEXT, "blocks.0", (ProgramKind.LOSS, ProgramKind.GRADIENT)),
        ("encoder", CLASSES, "first", (ProgramKind.LOSS, ProgramKind.GRADIENT)),
        ("bag", NUMBERS, "pooled", (ProgramKind.PULLBACK,)),
        ("frozen_and_tied", NEXT, "blocks.0", (ProgramKind.GRADIENT,)),
    ],
)
def test_programs_are_equal_to_the_model_gradients_of_embeddings_included(
    name: str, data: str, cut: str, kinds: tuple[ProgramKind, ...]
) -> None:
    model = build(name, data, cut)
    trained = [spec.name for spec in model.to_spec().client_model]
    assert any("embedding" in weight or "wte" in weight for weight in trained) is (name != "frozen_and_tied")
    for kind in kinds:
        check_outputs(model, kind, program=export(compile_function(model, kind, micro_batch=2)), micro_batch=2, seed=0)


def test_the_default_heads_know_the_mask_and_ones_own_may_ask_for_it() -> None:
    assert [tuple(p.shape) for p in build("language", NEXT, "blocks.0").auxiliary_head.parameters()] == [(30, 8)]
    default, own = build("encoder", CLASSES, "first"), build("encoder", CLASSES, "first", head="python:tokens_zoo:masked_head")
    z, mask = torch.randn(1, 6, 8), torch.tensor([[True, True, False, False, False, False]])
    changed = z + 9 * (~mask)[..., None]
    for head in (default.auxiliary_head, own.auxiliary_head):
        assert torch.allclose(head(z, mask), head(changed, mask), atol=1e-5) and not torch.allclose(head(z, mask), head(z, ~mask))
    assert [tuple(p.shape) for p in build("bag", CLASSES, "pooled").auxiliary_head.parameters()] == [(3, 6), (3,)]


def test_a_tokenizer_says_how_many_tokens_there_are_and_goes_to_clients(zoo: Path) -> None:
    document = word_tokenizer("a b c")
    (zoo / "tokenizer.json").write_bytes(document)
    data = parse_specification(NEXT)
    model = build_model("python:tokens_zoo:language", {"tokenizer": "tokenizer.json"}, data=data, seed=0, cut="blocks.0")
    completed = model.completed(data)
    assert (model.num_tokens, model.tokenizer, completed.num_classes) == (6, document, 6)
    assert completed.tokenizer is not None and completed.tokenizer.size_bytes == len(document)
    assert "less than the 6 tokens" in refusal("language", NEXT, "blocks.0", tokenizer="tokenizer.json", vocabulary_size="5")
    assert "cannot be read" in refusal("language", NEXT, "blocks.0", tokenizer="none.json")
    (zoo / "broken.json").write_text("{}")
    assert "names no tokenizer" in refusal("language", NEXT, "blocks.0", tokenizer="broken.json")


LETTERS = "a b c d e f"
"""Numbered from 3 on: the model `typed` takes texts that begin with one of the first three."""


def write_texts(path: Path, starts: str = "abc", rows: int = 40) -> None:
    lines = [f"{starts[row % len(starts)]} {LETTERS[: 2 * (row % 4) + 1]},{row % 3}" for row in range(rows)]
    path.write_text("\n".join(["text,label", *lines]) + "\n")


TYPED = {"model": "python:tokens_zoo:typed", "model_options": "tokenizer=tokenizer.json", "data_spec": CLASSES, "cut": "embedding"}


@pytest.mark.parametrize("option", ["eval_data", "validation_data", "data"])
def test_a_model_of_tokens_is_tried_on_the_operators_texts_wherever_they_come_from(zoo: Path, program_cache_dir: Path, option: str) -> None:
    (zoo / "tokenizer.json").write_bytes(word_tokenizer(LETTERS))
    write_texts(zoo / "texts.csv")
    few = {"clients": 2, "rounds": 1, "local_steps": 1, "batch_size": 4, "preset": "frozen", "program_cache": program_cache_dir}
    given = {"data": "csv:texts.csv:text:label"} | ({option: "csv:texts.csv:text:label"} if option != "data" else {})
    assert simulate(simulation_config(run_dir=zoo / "run", **TYPED, **given, **few))["rounds_completed"] == 1
    kept = load_trained(zoo / "run", vouched=Vouched(trusts_code=True)).model
    assert kept.probes is not None and set(kept.probes.x[:, 0].tolist()) == {3, 4, 5}
    drawn, _ = kept.random_batch(50, np.random.Generator(np.random.Philox(key=1)))
    assert {tuple(row) for row in drawn} <= {tuple(row) for row in kept.probes.x} and (drawn == PADDING).any()
    assert simulate(simulation_config(run_dir=zoo / "run", resume=True, **TYPED, **given, **(few | {"rounds": 2})))["rounds_completed"] == 2


def test_a_model_that_dislikes_random_tokens_says_what_to_give(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (zoo / "tokenizer.json").write_bytes(word_tokenizer(LETTERS))
    sentence = refusal("typed", CLASSES, "embedding")
    assert "6 tokens from 0 to 29" in sentence and "give --eval-data, whose samples it is then tried on" in sentence
    write_texts(zoo / "texts.csv")
    words = ["cuts", "--model", TYPED["model"], "--model-options", TYPED["model_options"], "--data-spec", CLASSES]
    assert main([*words, "--eval-data", "csv:texts.csv:text:label"]) == 0
    assert "places to cut" in capsys.readouterr().out
    write_texts(zoo / "texts.csv", "abf")
    assert main([*words, "--eval-data", "csv:texts.csv:text:label"]) == 2
    assert "samples of the run's own data of 6 tokens from 0 to 8" in capsys.readouterr().err


def test_a_token_that_the_vocabulary_has_not_is_the_datas_fault(zoo: Path) -> None:
    x = np.full((4, 6), 3)
    x[1, 2] = 30
    with pytest.raises(DataError, match=r"from 0 to 29, but the run's own data have 30"):
        build_model(
            "python:tokens_zoo:bag",
            {"vocabulary_size": "30"},
            data=parse_specification(CLASSES),
            seed=0,
            cut="embedding",
            probes=Probes(x, are_made_up=False),
        )


def test_what_cannot_work_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigurationError, match=r"tokenizer=FILE .* or vocabulary_size=N"):
        build_model("python:tokens_zoo:language", {}, data=parse_specification(NEXT), seed=0, cut="blocks.0")
    tied = refusal("language", NEXT, "blocks.0", tied="true")
    assert "wte.weight (which is unembed.weight) would be on both sides" in tied and "untie or freeze it" in tied
    assert "6 tokens from 0 to 29" in refusal("narrow", CLASSES, "embedding")
    assert "[2, 6, 30]" in refusal("bag", NEXT, "embedding") and "vocabulary has tokens" in refusal("bag", NEXT, "embedding")
    assert "pad_token=30" in refusal("bag", CLASSES, "embedding", pad_token="30")
    assert "write one, like text:6" in refusal("language", "text:3,6:next-token", "blocks.0")
    assert "whole number" in refusal("bag", CLASSES, "embedding", vocabulary_size="many")
    with pytest.raises(ConfigurationError, match="reads numbers"):
        build_model("cnn", {}, data=parse_specification(CLASSES), seed=0)
