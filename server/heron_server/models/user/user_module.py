"""A user's own model: any torch module that a callable returns, cut behind a named submodule (`--model python:MODULE:CALLABLE --cut NAME`)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from heron_common.errors import ConfigurationError, DataError
from heron_common.specification.data_specification import PADDING, DataSpecification, Task
from heron_server.models.copies import copied
from heron_server.models.probes import Probes, made_up
from heron_server.models.source_digest import code_digest, fingerprint
from heron_server.models.split_model import SplitModel, sample_losses_of
from heron_server.models.token_input import OPTIONS as TOKEN_OPTIONS
from heron_server.models.token_input import TokenInput, mask_argument_of, vocabulary_of
from heron_server.models.user.cut import Cutter
from heron_server.models.user.given_module import PREFIX as OBJECT_PREFIX
from heron_server.models.user.given_module import given_module
from heron_server.models.user.modes import keep_evaluation_modes
from heron_server.models.user.same_as_whole import capture_difference, cut_difference
from heron_server.models.user.tryout import Tryout, check_weights
from heron_server.models.user.user_code import call_with_options
from heron_server.models.user.user_head import build_head, check_gradients

log = logging.getLogger(__name__)

_SHOWN_PLACES = 12

_COMPARED = 3
"""Samples by which a model is compared with its capture and its sides."""

_OWN_OPTIONS = {"head", "batch_norm"}
"""Options that are not the callable's: they say what becomes of its model."""


class UserModel:
    """A model that a callable returned, before it is cut.

    The front runs in evaluation mode, on devices and on the server: dropout in it is off. Batch normalisation in it must be frozen, which one is that
    the callable returned in evaluation mode; with the option `batch_norm=batch` all of it normalises by the batch instead, whatever mode it came in, and
    its running statistics are trained beside the weights - devices then hold the activations of a whole batch at once. The back trains as the model would.
    """

    def __init__(
        self,
        family: str,
        options: Mapping[str, Any],
        *,
        data: DataSpecification,
        probes: Probes | None = None,
        module: nn.Module | None = None,
    ) -> None:
        """Call the callable, check what it returns and trace a copy of it; torch's global generator draws the weights.

        `probes` are what it is tried on; normal numbers or random tokens by default. `module` stands for what the callable returns where it was handed over.

        Raises:
            ConfigurationError: it does not return a model of logits for these data, or one that cannot be traced.
            DataError: the probes hold a token that its vocabulary has not.

        """
        self.family = family
        self._data = data
        self._head = options.get("head")
        self._by_batch = _normalises_by_batch(options)
        self._vocabulary = vocabulary_of(family, options) if data.tokens else None
        self._num_classes = self._vocabulary.size if self._vocabulary and data.task is Task.NEXT_TOKEN else data.num_classes
        called = (self._given(options, module) if family.startswith(OBJECT_PREFIX) else self._called(options)).cpu()
        self._tokens = None
        if self._vocabulary is not None:
            (length,) = data.input_shape
            if len(data.lengths) > 1:
                raise ConfigurationError(
                    f"{family!r} is traced for one length of text, but the data specification has {', '.join(map(str, data.lengths))}: "
                    f"write one, like text:{length}"
                )
            self._tokens = TokenInput(
                length, self._vocabulary.size, pad_token=self._vocabulary.pad_token, mask_argument=mask_argument_of(called)
            )
            _check_vocabulary(probes, self._vocabulary.size)
        own = probes or (made_up(data.input_shape) if self._tokens is None else None)
        self._tryout = Tryout(data, self._num_classes, tokens=self._tokens, probes=own)
        try:
            check_weights(called)
            self._tryout.check(called)
        except ConfigurationError as exc:
            raise ConfigurationError(f"model {family!r} {exc}") from exc
        try:
            # The model that the callable returned stays as it is: whoever holds it sees no trace of what is done with the copy.
            self.whole = copied(called)
            staying = keep_evaluation_modes(self.whole, self._by_batch)
            self.cutter = Cutter(self.whole, self._tryout.samples, by_batch=self._by_batch, tokens=self._tokens)
        except ConfigurationError as exc:
            raise ConfigurationError(f"model {family!r} cannot be cut: {exc}") from exc
        if staying:
            log.info("stays in evaluation mode, as the model's callable or its train() left it", extra={"submodules": ",".join(staying)})

    def _given(self, options: Mapping[str, Any], module: nn.Module | None) -> nn.Module:
        """Return a copy of the module that was handed over, which nobody calls with options."""
        known = _OWN_OPTIONS | (TOKEN_OPTIONS if self._vocabulary is not None else set())
        if unknown := sorted(set(options) - known):
            raise ConfigurationError(f"a module that is handed over takes the options {', '.join(sorted(known))}, not {', '.join(unknown)}")
        return given_module(self.family, module)

    def _called(self, options: Mapping[str, Any]) -> nn.Module:
        """Return what the callable makes of its own options and of what is known of the data."""
        own = _OWN_OPTIONS | (TOKEN_OPTIONS if self._vocabulary is not None else set())
        offered = {"num_classes": self._num_classes, "input_shape": self._data.input_shape}
        if self._vocabulary is not None:
            offered["vocabulary_size"] = self._vocabulary.size
        whole = call_with_options(self.family, {key: value for key, value in options.items() if key not in own}, offered)
        if not isinstance(whole, nn.Module):
            raise ConfigurationError(f"{self.family!r} returned a {type(whole).__name__}, but a torch.nn.Module was expected")
        return whole

    def split(self, cut: str | None) -> SplitModel:
        """Return front, head and back of a cut, proved equal to the whole.

        Raises:
            ConfigurationError: it cannot be cut there; the sentence says why and where it could be.

        """
        self._check_place(cut)
        assert cut is not None
        model = self.client_side(cut, self.cutter.back(cut))
        self._check_equality(model, cut)
        digest = code_digest(model, self.whole if self.cutter.kept_whole else None)
        model = dataclasses.replace(model, name=f"{model.name}:{fingerprint(model.front, model.auxiliary_head)}", code_digest=digest)
        off = [name for name, layer in model.front.named_modules() if isinstance(layer, nn.modules.dropout._DropoutNd)]
        if off:
            log.info("dropout in the front is off, devices draw nothing", extra={"layers": ",".join(off)})
        return model

    def client_side(self, cut: str, back: nn.Module) -> SplitModel:
        """Return front and head of a place where a cut works, with any back."""
        front, shape = self.cutter.front(cut), self.cutter.shape(cut)
        data = self._data
        own = None if self._head is None else str(self._head)
        head = build_head(own, shape, num_classes=self._num_classes, task=data.task, tokens=self._tokens, by_batch=self._by_batch)
        name = f"{self.family}:{cut}:{list(data.input_shape)}:{self._num_classes}:{data.task.value}"
        losses = sample_losses_of(data.task)
        model = SplitModel(
            name,
            front,
            auxiliary_head=head,
            back=back,
            sample_losses=losses,
            input_shape=data.input_shape,
            num_classes=self._num_classes,
            task=data.task,
            whole=self.whole,
        )
        model = dataclasses.replace(model, probes=self._tryout.probes)
        if self._vocabulary is not None:
            model = dataclasses.replace(model, tokens=True, tokenizer=self._vocabulary.tokenizer, token_input=self._tokens)
        return dataclasses.replace(model, name=f"{name}:by batch", batch_statistics=True) if self._by_batch else model

    def _check_place(self, cut: str | None) -> None:
        if cut is None:
            raise ConfigurationError(f"model {self.family!r} needs --cut, the submodule behind which it is cut: {self._where()}")
        if not self.cutter.has(cut):
            raise ConfigurationError(f"model {self.family!r} has no submodule {cut!r}: {self._where()}")
        refusal = self.cutter.refusal(cut)
        if refusal is not None:
            raise ConfigurationError(f"model {self.family!r} cannot be cut at {cut!r}: {refusal.detail}; {self._where()}")

    def _where(self) -> str:
        places = self.cutter.places
        if not places:
            return "there is no submodule behind which it could be (`heron cuts` says why)"
        more = f" and {len(places) - _SHOWN_PLACES} more (`heron cuts` lists them)" if len(places) > _SHOWN_PLACES else ""
        return f"--cut can be {', '.join(places[:_SHOWN_PLACES])}{more}"

    def _check_equality(self, model: SplitModel, cut: str) -> None:
        """Refuse a model whose capture is not the whole, or a cut whose sides together are not, as where operations in place act behind the graph's back."""
        tryout = self._tryout
        try:
            tryout.check_activations(model.front)
        except ConfigurationError as exc:
            raise ConfigurationError(f"model {self.family!r} {exc}") from exc
        found = capture_difference(self.whole, self.cutter.captured(), call=tryout.call, x=tryout.samples(_COMPARED))
        for rows in (2, _COMPARED):
            found = found or cut_difference(self.whole, model, call=tryout.call, x=tryout.samples(rows))
        if found:
            raise ConfigurationError(f"model {self.family!r} cut at {cut!r} {found}")
        if self._head is not None:
            check_gradients(str(self._head), model, tryout.samples(2))


def _check_vocabulary(probes: Probes | None, size: int) -> None:
    largest = int(probes.x.max()) if probes is not None else PADDING
    if largest >= size:
        raise DataError(
            f"token ids are {PADDING} behind the end or from 0 to {size - 1}, but the run's own data have {largest}: "
            "tokenise the text anew, or raise vocabulary_size in --model-options"
        )


def _normalises_by_batch(options: Mapping[str, Any]) -> bool:
    chosen = str(options.get("batch_norm", "frozen"))
    if chosen not in ("frozen", "batch"):
        raise ConfigurationError(f"batch_norm is frozen or batch, not {chosen!r}: write batch_norm=batch to normalise by the batch")
    return chosen == "batch"


def whole_state(model: SplitModel) -> dict[str, torch.Tensor]:
    """Return the trained tensors of front and back by the names that they have in the user's model, for its `load_state_dict(..., strict=False)`.

    What the model has beside these takes no part in its logits.
    """
    return {**model.front.state_dict(), **model.back.state_dict()}
