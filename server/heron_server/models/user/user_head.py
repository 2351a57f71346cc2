"""The auxiliary head of a user's model: one that fits the activations, or a callable's own."""

from __future__ import annotations

import torch
from torch import nn

from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import Task
from heron_server.models.batch_norm import keep_frozen
from heron_server.models.head import auxiliary_head
from heron_server.models.split_model import SplitModel, predict
from heron_server.models.token_input import TokenInput
from heron_server.models.transformer.token_head import Unmasked, token_head
from heron_server.models.user.reasons import reason_of
from heron_server.models.user.same_as_whole import sides_pass
from heron_server.models.user.user_code import load_callable


def build_head(
    own: str | None, shape: tuple[int, ...], *, num_classes: int, task: Task, tokens: TokenInput | None, by_batch: bool
) -> nn.Module:
    """Return a head for activations of this shape per sample; `own` names the callable that builds it, if one does.

    Raises:
        ConfigurationError: there is none for such activations, or the callable builds none.

    """
    if own is None:
        try:
            return token_head(shape, tokens.length, task=task, num_classes=num_classes) if tokens else auxiliary_head(shape, num_classes)
        except ValueError as exc:
            raise ConfigurationError(str(exc)) from exc
    build = load_callable(own)
    mask = torch.ones(2, tokens.length, dtype=torch.bool) if tokens else None
    try:
        head = build(shape, num_classes)
        if tokens and isinstance(head, nn.Module):
            head = Unmasked(head)
        if by_batch and isinstance(head, nn.Module):
            head.eval()
        with torch.no_grad():
            logits = predict(head, torch.zeros(2, *shape), mask)
    except Exception as exc:
        raise ConfigurationError(
            f"head {own!r} was called with ({shape}, {num_classes}) and then with activations, but {reason_of(exc)}"
        ) from exc
    places = (tokens.length,) if tokens and task is Task.NEXT_TOKEN else ()
    if not isinstance(head, nn.Module) or tuple(logits.shape) != (2, *places, num_classes) or not list(head.parameters()):
        form = ", ".join(map(str, ("B", *places, num_classes)))
        raise ConfigurationError(f"head {own!r} was expected to be a torch module with weights that gives logits [{form}]")
    if not by_batch:
        keep_frozen(head)
    return head


def check_gradients(own: str, model: SplitModel, x: torch.Tensor) -> None:
    """Refuse a head through which the front, or a weight of its own, could not be trained.

    Raises:
        ConfigurationError: it gives no numbers, detaches, computes without gradients, or has a weight that it does not use.

    """
    found = sides_pass(model, model.auxiliary_head, x)
    if not bool(torch.isfinite(found.outputs).all()):
        raise ConfigurationError(f"head {own!r} was given activations of the front, but gives NaN or infinite outputs: mend it")
    idle = [names[0] for names, gradient in found.gradients.items() if gradient is None]
    if idle:
        raise ConfigurationError(
            f"with head {own!r} the weight {idle[0]} gets no gradient from the head's outputs (torch.no_grad, detach, or unused): "
            "use it, or freeze it with requires_grad_(False)"
        )
