"""A model that a Python program names or hands over: the name that options have for it, and a first look at its cut."""

from __future__ import annotations

from torch import nn

from heron_common.errors import ConfigurationError
from heron_common.terminal.spelling import did_you_mean
from heron_server.models.user.given_module import name_of

_SHOWN = 12


def model_name(model: nn.Module | str) -> str:
    """Return what `--model` says of a model.

    Raises:
        ConfigurationError: it is neither a module nor a name, or its layers have no weights yet.

    """
    if isinstance(model, str):
        return model
    if not isinstance(model, nn.Module):
        hint = ": call it, and hand over what it returns" if callable(model) else ""
        raise ConfigurationError(f"model is a torch.nn.Module, or a name like cnn or hf:FOLDER, not {type(model).__name__}{hint}")
    return name_of(model)


def check_cut(model: nn.Module | str, cut: str | None) -> None:
    """Refuse at once a cut that is no submodule; whether the module can be cut there is found out when it is built.

    Raises:
        ConfigurationError: it is none.

    """
    if not isinstance(model, nn.Module):
        return
    names = [name for name, _ in model.named_modules() if name]
    if cut in names:
        return
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    if cut is None:
        raise ConfigurationError(f"cut is missing: name the submodule behind which the module is cut, one of {shown}")
    raise ConfigurationError(f"the module has no submodule {cut!r}{did_you_mean(cut, names) or ''}; it has {shown}")
