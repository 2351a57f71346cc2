"""Adapters of frozen transformers, by the library peft: few trained weights, which is what zeroth-order steps want."""

from __future__ import annotations

import warnings
from enum import StrEnum
from typing import Any

from heron_common.errors import ConfigurationError


class Adapter(StrEnum):
    """NONE: blocks are trained whole, embeddings stay frozen. LORA (arXiv 2106.09685), IA3 (arXiv 2205.05638), VERA (arXiv 2310.11454)."""

    NONE = "none"
    LORA = "lora"
    IA3 = "ia3"
    VERA = "vera"


def add_adapter(model: Any, adapter: Adapter, *, rank: int, alpha: int, targets: tuple[str, ...], seed: int) -> Any:
    """Return the model with adapters in its blocks as peft wraps it; every other weight is frozen.

    Args:
        model: of transformers; its layers are replaced in place.
        adapter: which.
        rank, alpha: of LoRA's and VeRA's matrices, and what LoRA's product is scaled by over the rank.
        targets: names of layers that get one; peft's choice for the architecture where there are none.
        seed: of VeRA's shared projections.

    Raises:
        ConfigurationError: peft is not installed, or no layer has such a name.

    """
    try:
        import peft
    except ImportError as exc:
        raise ConfigurationError("adapters need the library peft: pip install 'heron-sfl[server]', or use adapter=none") from exc
    chosen: list[str] | None = list(targets) or None
    configuration: Any
    if adapter is Adapter.LORA:
        configuration = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen, fan_in_fan_out=_is_transposed(model))
    elif adapter is Adapter.IA3:
        configuration = peft.IA3Config(target_modules=chosen, fan_in_fan_out=_is_transposed(model))
    else:
        configuration = peft.VeraConfig(
            r=rank, target_modules=chosen, projection_prng_key=seed, save_projection=True, fan_in_fan_out=_is_transposed(model)
        )
    try:
        with warnings.catch_warnings():
            # peft asks transformers in a way that is going out of use; nobody here can change that.
            warnings.simplefilter("ignore", FutureWarning)
            return peft.get_peft_model(model, configuration)
    except (ValueError, KeyError, TypeError) as exc:
        first = str(exc).strip().splitlines()[0]
        raise ConfigurationError(f"adapter={adapter.value} does not fit this model ({first[:200]}): name its layers with targets=") from exc


def _is_transposed(model: Any) -> bool:
    """Whether linear layers keep their weights as [in, out], as GPT-2's do."""
    return bool(getattr(model.config, "model_type", "") == "gpt2")
