"""Which parts of a user's model stay in evaluation mode while the rest is trained; a graph of it calls neither its `train` nor that of what it flattens."""

from __future__ import annotations

from types import MethodType

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from heron_common.errors import ConfigurationError
from heron_server.models.batch_norm import FrozenStatistics, freeze_statistics
from heron_server.models.user.reasons import reason_of


def keep_evaluation_modes(model: nn.Module, by_batch: bool) -> list[str]:
    """Make everything stay in evaluation mode that came in it or that the model's own `train` leaves in it; the model is in evaluation mode afterwards.

    `by_batch` excepts batch normalisation, all of which then normalises by the batch. Returns what stays, the outermost by name.

    Raises:
        ConfigurationError: the model's `train` or `eval` fails.

    """
    staying = {name for name, module in model.named_modules() if not module.training}
    try:
        model.train()
        staying |= {name for name, module in model.named_modules() if not module.training}
        model.eval()
    except Exception as exc:
        raise ConfigurationError(f"train() and eval() of the model were called, but it {reason_of(exc)}") from exc
    kept: list[str] = []
    for name, module in model.named_modules():
        if name not in staying or isinstance(module, FrozenStatistics) or (by_batch and isinstance(module, _BatchNorm)):
            continue
        if not any(outer in ("", name) or name.startswith(f"{outer}.") for outer in kept):
            kept.append(name)
        if not freeze_statistics(module):
            # On the instance, which a copy keeps; the class says how the parts inside follow.
            object.__setattr__(module, "train", MethodType(_train_what_is_inside, module))
    return [name or "the whole model" for name in kept]


def _train_what_is_inside(module: nn.Module, mode: bool = True) -> nn.Module:
    type(module).train(module, mode)
    module.training = False
    return module
