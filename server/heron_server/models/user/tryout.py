"""The first run of a user's model: what it is given, and what it must give back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import DataSpecification, Task
from heron_server.models.copies import copied, generators_kept
from heron_server.models.probes import Probes
from heron_server.models.token_input import TokenInput
from heron_server.models.user.reasons import reason_of

_SEQUENCES_AT_ONCE = 4


@dataclass(frozen=True)
class Tryout:
    """What a user's model is run on before it is trained: probes, or random tokens where nobody gave any."""

    data: DataSpecification
    num_classes: int
    _: KW_ONLY
    tokens: TokenInput | None
    probes: Probes | None

    def samples(self, rows: int) -> torch.Tensor:
        """Return so many samples, always the same."""
        if self.probes is not None:
            return self.probes.first(rows)
        assert self.tokens is not None
        return self.tokens.example(rows)

    def call(self, module: nn.Module, x: torch.Tensor) -> Any:
        """Return what the whole model, or a capture of it, makes of samples."""
        return module(x.clone()) if self.tokens is None else self.tokens.call(module, x)

    def check(self, called: nn.Module) -> None:
        """Run everything through a copy once. The model itself runs only where its first forward makes weights, as that of lazy layers does.

        Raises:
            ConfigurationError: it fails, or gives no logits; the sentence goes on from the model's name.

        """
        trial = copied(called)
        try:
            with torch.no_grad(), generators_kept():
                outputs = self.call(trial.eval(), self.samples(2))
            if _tensor_names(trial) != _tensor_names(called):
                self._complete(called)
            if isinstance(outputs, torch.Tensor):
                self._check_form(outputs)
                with torch.no_grad(), generators_kept():
                    is_finite = all(_is_finite(self.call(trial, x)) for x in self._all())
        except ConfigurationError:
            raise
        except Exception as exc:
            raise ConfigurationError(f"was given {self._given}, but {reason_of(exc)}{self._remedy}") from exc
        if not isinstance(outputs, torch.Tensor):
            self._check_form(outputs)
        if not is_finite:
            raise ConfigurationError(f"was given {self._given}, but gives NaN or infinite outputs{self._remedy}")

    def check_activations(self, front: nn.Module) -> None:
        """Run everything through a copy of the front.

        Raises:
            ConfigurationError: activations are no numbers.

        """
        trial = copied(front)
        with torch.no_grad(), generators_kept():
            is_finite = all(_is_finite(trial(x)) for x in self._all())
        if not is_finite:
            raise ConfigurationError(f"was given {self._given}, but gives NaN or infinite activations at the cut{self._remedy}")

    def _all(self) -> Sequence[torch.Tensor]:
        if self.probes is None:
            return (self.samples(2),)
        x = torch.from_numpy(self.probes.x)
        # Logits of a whole vocabulary for every token are large.
        return (x,) if self.tokens is None else torch.split(x, _SEQUENCES_AT_ONCE)

    def _check_form(self, outputs: Any) -> None:
        places = self.data.input_shape if self.data.task is Task.NEXT_TOKEN else ()
        wanted = (2, *places, self.num_classes)
        if isinstance(outputs, torch.Tensor) and tuple(outputs.shape) == wanted:
            return
        came = f"a tensor of shape {list(outputs.shape)}" if isinstance(outputs, torch.Tensor) else f"a {type(outputs).__name__}"
        many = "the vocabulary has tokens" if places else "--data-spec has classes"
        raise ConfigurationError(
            f"was expected to return logits of shape {list(wanted)} for two samples, but returned {came}: "
            f"make its last layer as wide as {many}, and return nothing else"
        )

    def _complete(self, called: nn.Module) -> None:
        modes = {module: module.training for module in called.modules()}
        with torch.no_grad():
            self.call(called.eval(), self.samples(2))
        for module, training in modes.items():
            module.training = training

    @property
    def _given(self) -> str:
        shape = "x".join(map(str, self.data.input_shape))
        if self.tokens is not None:
            called = self.probes.called if self.probes is not None else "samples"
            return f"{called} of {shape} tokens from 0 to {self.tokens.vocabulary_size - 1}"
        assert self.probes is not None
        return f"{self.probes.called} of shape {shape}, as --data-spec says"

    @property
    def _remedy(self) -> str:
        if self.probes is None:
            return ": where the model takes only other sequences than random ones, give --eval-data, whose samples it is then tried on"
        return f": {self.probes.remedy}"


def check_weights(called: nn.Module) -> None:
    """Refuse weights that are no numbers, and those with hooks of their own, which copies lose.

    Raises:
        ConfigurationError: there are some; the sentence goes on from the model's name.

    """
    for name, parameter in called.named_parameters():
        if is_lazy(parameter):
            continue
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ConfigurationError(f"has a hook on the weight {name} (register_hook), which a cut model would lose: do without it")
        # A frozen mask may be infinite where nothing is to be seen.
        wrong = torch.isnan(parameter) if not parameter.requires_grad else ~torch.isfinite(parameter)
        if bool(wrong.any()):
            raise ConfigurationError(
                f"has NaN or infinite values in the weight {name} as its callable returns it: mend how it is drawn or loaded"
            )


def _is_finite(outputs: torch.Tensor) -> bool:
    return bool(torch.isfinite(outputs).all())


def _tensor_names(module: nn.Module) -> list[tuple[str, bool]]:
    return [(name, is_lazy(value)) for name, value in (*module.named_parameters(), *module.named_buffers())]
