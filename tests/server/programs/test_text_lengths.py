"""Texts of several lengths at the server: which uploads it takes, and that padding behind the mask changes nothing that it computes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heron_common.algorithm.algorithm import Alignment
from heron_common.algorithm.payload_shapes import evaluation_specs, upload_specs
from heron_common.algorithm.presets import preset
from heron_common.error_catalog import ErrorCode
from heron_common.errors import ConfigurationError, RefusedError
from heron_common.numerics.directions import PerturbationSeed
from heron_common.numerics.tensors import DType, TensorSpec, total_bytes
from heron_common.protocol.messages import UploadPurpose
from heron_common.specification.data_specification import IGNORED, PADDING
from heron_common.specification.model_spec import ModelSpec, ProgramKind
from heron_common.specification.text_lengths import of_length
from heron_server.models.split_model import SplitModel, next_tokens, trained_parameters
from heron_server.programs.publish import complete_algorithm, publish
from heron_server.rounds.attempt import Attempt
from heron_server.storage.spool import SpoolEntry
from heron_server.training.alignment import HeadAlignment
from heron_server.training.trainer import Trainer
from heron_server.training.uploads import DecodedUpload, decode_tensors, decode_upload, mixed_batches, padded_alike
from tests.harness.transformers import build, next_token, three_classes
from tests.server.builders import MODEL, attempt, key, run_facts, upload
from tests.server.training.test_trainer import settings

TEXTS = dataclasses.replace(
    MODEL,
    cut=TensorSpec("activations", DType.FLOAT32, (8, 2)),
    labels=TensorSpec("labels", DType.INT64, (8,)),
    context=(TensorSpec("mask", DType.UINT8, (8,)),),
    lengths=(2, 4, 8),
)


def of_texts(model: ModelSpec = TEXTS) -> Attempt:
    plain = attempt()
    return Attempt(plain.assignment, run_facts(model=model, evaluation_batches=2), cohort=plain.cohort)


@pytest.mark.parametrize("length", TEXTS.lengths)
@pytest.mark.parametrize("purpose", [UploadPurpose.TRAIN, UploadPurpose.EVALUATE])
def test_an_upload_is_of_one_of_the_lengths_and_has_its_size(length: int, purpose: UploadPurpose) -> None:
    a, at_length = of_texts(), of_length(TEXTS, length)
    plan = a.assignment.plan
    specs = upload_specs(plan, at_length) if purpose is UploadPurpose.TRAIN else evaluation_specs(plan, at_length, 3)
    assert a.check_upload(key(purpose=purpose), 0, tensors=specs, announced_bytes=total_bytes(specs)) == specs
    for announced, code in ((total_bytes(specs) + 1, ErrorCode.OVERSIZED), (total_bytes(specs) - 1, ErrorCode.INVALID_TENSOR)):
        with pytest.raises(RefusedError) as caught:
            a.check_upload(key(purpose=purpose), 0, tensors=specs, announced_bytes=announced)
        assert caught.value.code is code
    z, *beside = specs
    other = TensorSpec(z.name, z.dtype, (z.shape[0], {2: 4, 4: 8, 8: 2}[length], 2))
    odd = TensorSpec(z.name, z.dtype, (z.shape[0], 3, 2))
    for tensors, sentence in (
        ((other, *beside), "expected tensor 'labels'"),
        ((odd, *beside), "lengths 2, 4, 8, but the header announces 3"),
    ):
        with pytest.raises(RefusedError, match=sentence) as caught:
            a.check_upload(key(purpose=purpose), 0, tensors=tensors, announced_bytes=total_bytes(tensors))
        assert caught.value.code is ErrorCode.INVALID_TENSOR


def test_what_was_accepted_is_decoded_at_its_length_where_its_size_would_not_tell(tmp_path: Path) -> None:
    plan = attempt().assignment.plan
    few_long, many_short = evaluation_specs(plan, of_length(TEXTS, 8), 1), evaluation_specs(plan, of_length(TEXTS, 4), 2)
    assert total_bytes(few_long) == total_bytes(many_short)
    for length in TEXTS.lengths:
        specs = upload_specs(plan, of_length(TEXTS, length))
        path = tmp_path / str(length)
        path.write_bytes(bytes(total_bytes(specs)))
        accepted = dataclasses.replace(upload(key(), SpoolEntry(path, path.stat().st_size)), length=length)
        decoded = decode_upload(accepted, plan, TEXTS)
        assert decoded.activations.shape == (4, length, 2) and decoded.labels.shape == (4, length)
        assert decoded.mask is not None and decoded.mask.shape == (4, length)
        assert decode_tensors(accepted, specs, plan.wire_dtype).activations.shape == (4, length, 2)


# --- padding


def model_of(folder: Path, family: str) -> SplitModel:
    model = build(folder, family, next_token(8) if family == "gpt2" else three_classes(8), head_blocks=1)
    # The server's own dropout draws for every place, padding too: it is the same in distribution only.
    for module in (*model.back.modules(), *model.auxiliary_head.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def upload_of(model: SplitModel, length: int, seed: int, rows: int = 4) -> DecodedUpload:
    """Return what a client would upload of texts of this length."""
    generator = np.random.default_rng(seed)
    x = generator.integers(3, 60, (rows, length))
    x[np.arange(length) >= generator.integers(1, length + 1, rows)[:, None]] = PADDING
    y = next_tokens(x) if model.task.value == "next_token" else generator.integers(0, 3, rows)
    with torch.no_grad():
        return DecodedUpload(model.front(torch.from_numpy(x)).numpy(), y, (x >= 0).astype(np.uint8))


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama"])
def test_a_step_on_padded_texts_is_the_step_on_the_texts(tmp_path: Path, family: str) -> None:
    model = model_of(tmp_path, family)
    short = upload_of(model, 4, seed=1)
    padded = short.padded(8)
    assert padded.activations.shape == (4, 8, 16) and padded.mask is not None and not padded.mask[:, 4:].any()
    assert family != "gpt2" or (padded.labels[:, 4:] == IGNORED).all()
    assert short.padded(4) is short
    found = []
    for one in (short, padded):
        trainer = Trainer(model_of(tmp_path, family), settings("sgd"), trains_head=True)
        judged = trainer.judge(one)
        outcome = trainer.train(one, wants_cut_gradient=True)
        weights = [p.detach().clone() for part in (trainer.model.back, trainer.model.auxiliary_head) for _, p in trained_parameters(part)]
        found.append((judged, outcome, weights))
    (judged, outcome, weights), (padded_judged, padded_outcome, padded_weights) = found
    np.testing.assert_allclose(judged, padded_judged, rtol=1e-5)
    np.testing.assert_allclose(outcome.losses, padded_outcome.losses, rtol=1e-5)
    assert outcome.cut_gradient is not None and padded_outcome.cut_gradient is not None
    np.testing.assert_allclose(outcome.cut_gradient, padded_outcome.cut_gradient[:, :4], atol=1e-6)
    assert not padded_outcome.cut_gradient[:, 4:].any()
    for a, b in zip(weights, padded_weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_uploads_of_a_step_are_mixed_whatever_their_lengths(tmp_path: Path) -> None:
    model = model_of(tmp_path, "gpt2")
    uploads = [upload_of(model, length, seed) for seed, length in enumerate((4, 8, 2))]
    seed = PerturbationSeed(3, 1)
    for mixed, expected in zip(mixed_batches(uploads, seed), mixed_batches(padded_alike(uploads), seed), strict=True):
        assert np.array_equal(mixed.rows.activations, expected.rows.activations) and mixed.rows.activations.shape == (4, 8, 16)
        assert np.array_equal(mixed.sources, expected.sources) and np.array_equal(mixed.rows.labels, expected.rows.labels)
    trainer = Trainer(model, settings(), trains_head=False)
    by_row: dict[bytes, float] = {}
    for batch in mixed_batches(uploads, seed):
        by_row |= {z.tobytes(): float(loss) for z, loss in zip(batch.rows.activations, trainer.judge(batch.rows)[0], strict=True)}
    for one, padded in zip(uploads, padded_alike(uploads), strict=True):
        np.testing.assert_allclose([by_row[z.tobytes()] for z in padded.activations], trainer.judge(one)[0], rtol=1e-5)


def test_heads_are_aligned_on_texts_of_several_lengths(tmp_path: Path) -> None:
    model = model_of(tmp_path, "bert")
    uploads = [upload_of(model, length, seed) for seed, length in enumerate((4, 8))]
    heads = []
    for kept in (uploads, padded_alike(uploads)):
        alignment = HeadAlignment(model, Alignment(epochs=2))
        for one in kept:
            alignment.keep("a", one)
        assert alignment.align() is not None
        heads.append(alignment.heads["a"])
    np.testing.assert_array_equal(*heads)


# --- start


def test_lengths_beyond_what_the_model_reads_are_refused_with_those_that_fit(tmp_path: Path) -> None:
    data = dataclasses.replace(next_token(64), lengths=(16, 32, 64))
    with pytest.raises(ConfigurationError, match=r"reads at most 32 tokens, but .* asks for 64: use a shorter length, like text:16,32:"):
        build(tmp_path, "llama", data)


class NamedPrograms:
    """In place of compiled programs: what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ProgramKind, tuple[int, ...]]] = []

    def program(self, model: SplitModel, kind: ProgramKind, micro_batch: int, directions: int = 1) -> bytes:
        assert directions == 1, "programs of tokens take one direction"
        self.asked.append((model.name, kind, model.input_shape))
        return f"{kind.value} {model.input_shape} {micro_batch}".encode()


def test_programs_are_published_once_for_each_kind_and_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proved: list[tuple[ProgramKind, bytes]] = []

    def prove(model: SplitModel, kind: ProgramKind, *, program: bytes, **_: Any) -> float:
        proved.append((kind, program))
        return 0.0

    monkeypatch.setattr("heron_server.programs.publish.check_outputs", prove)
    monkeypatch.setattr("heron_server.programs.publish.check_difference", lambda *_, **__: 0.0)
    several = build(tmp_path, "bert", dataclasses.replace(three_classes(8), lengths=(2, 4, 8)))
    one = build(tmp_path, "bert", three_classes(8))
    algorithm, _ = complete_algorithm(preset("heron"), several)
    programs, cache = [], NamedPrograms()
    for model in (several, one):
        programs.append(publish(algorithm, model, cache=cache, seed=0)[0])  # type: ignore[arg-type]
    kinds = {ProgramKind.LOSS, ProgramKind.FRONT} if algorithm.warmup_rounds else {ProgramKind.LOSS}
    assert {(p.reference.kind, p.reference.length) for p in programs[0]} == {(kind, length) for kind in kinds for length in (2, 4, 8)}
    assert {p.reference.length for p in programs[1]} == {0}
    assert len(proved) == len(programs[0]) + len(programs[1]), "each is proved"
    # The cache knows a length's program by its name, and the greatest length's as that of a run that has no other.
    names = {(name, shape) for name, _, shape in cache.asked}
    assert len({name for name, _ in names}) == len(names) == 3
