"""Transformers from a folder or the hub: configuration, weights, tokenizer; every failure is one sentence that names the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from heron_common.errors import ConfigurationError, HeronError
from heron_common.specification.data_specification import DataSpecification, Task
from heron_server.models.transformer.transformer_families import default_pad_token, family_of, is_token

PREFIX = "hf:"
"""Of a model that transformers knows: hf:FOLDER, or hf:NAME for one of the hub."""

T = TypeVar("T")


@dataclass(frozen=True)
class Pretrained:
    """A whole model as transformers builds it, in eval mode, its configuration, and the JSON of its tokenizer, None if it has none."""

    model: Any
    config: Any
    tokenizer: bytes | None


def load_pretrained(reference: str, data: DataSpecification, random_weights: bool) -> Pretrained:
    """Load a causal language model or a sequence classifier for the task of `data`; random weights come from torch's global generator.

    Raises:
        ConfigurationError: there is no such folder or name, the hub cannot be reached, weights are missing, or the tokenizer does not fit the model.

    """
    config = load_configuration(reference, data)
    if random_weights:
        model = model_without_weights(reference, config, data)
    else:
        kind = _kind(data)
        model = _loaded(
            reference,
            lambda: kind.from_pretrained(
                reference, config=config, attn_implementation="eager", dtype="float32", ignore_mismatched_sizes=True, use_safetensors=True
            ),
            "weights",
        )
    return Pretrained(model.float().eval(), config, _tokenizer(reference, config))


def load_configuration(reference: str, data: DataSpecification) -> Any:
    """Load what a model is made like, and note the task of `data` in it.

    Raises:
        ConfigurationError: there is no such folder or name, or the hub cannot be reached.

    """
    from transformers import AutoConfig

    _silence()
    config = _loaded(reference, lambda: AutoConfig.from_pretrained(reference, trust_remote_code=False), "a configuration")
    # First: what a configuration has beside its family's name is the family's.
    family_of(config)
    with read_as_configured(reference):
        _prepare(config, data)
    return config


def _prepare(config: Any, data: DataSpecification) -> None:
    config.use_cache = False
    if not is_token(config, config.pad_token_id):
        config.pad_token_id = default_pad_token(config)
    if data.task is not Task.NEXT_TOKEN:
        _describe_labels(config, data)


def model_without_weights(reference: str, config: Any, data: DataSpecification) -> Any:
    """Build a model with random weights from torch's global generator; raises ConfigurationError if there is none for the task of `data`."""
    return _loaded(reference, lambda: _kind(data).from_config(config, attn_implementation="eager", dtype="float32"), "a model of this task")


def _kind(data: DataSpecification) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if data.task is Task.NEXT_TOKEN else AutoModelForSequenceClassification


def _describe_labels(config: Any, data: DataSpecification) -> None:
    names = data.class_names or tuple(f"LABEL_{index}" for index in range(data.num_classes))
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = "regression" if data.task is Task.REGRESSION else "single_label_classification"
    if config.pad_token_id is None:
        # A classifier reads the last token that is no padding, so something has to be.
        end = config.eos_token_id
        config.pad_token_id = end if is_token(config, end) else 0


def _tokenizer(reference: str, config: Any) -> bytes | None:
    from transformers import AutoTokenizer

    folder = Path(reference)
    if folder.is_dir():
        file = folder / "tokenizer.json"
        text = file.read_bytes() if file.is_file() else None
        if text is None and not any((folder / name).is_file() for name in ("vocab.txt", "vocab.json", "tokenizer.model")):
            return None
    else:
        text = None
    if text is None:
        tokenizer = _loaded(reference, lambda: AutoTokenizer.from_pretrained(reference, trust_remote_code=False), "a tokenizer")
        text = tokenizer.backend_tokenizer.to_str().encode()
    from tokenizers import Tokenizer

    size = _loaded(reference, lambda: Tokenizer.from_str(text.decode()).get_vocab_size(with_added_tokens=True), "a tokenizer")
    if size > config.vocab_size:
        raise ConfigurationError(
            f"the tokenizer of {reference!r} has {size} tokens, its model {config.vocab_size}: use the tokenizer that the model was trained with"
        )
    return text


@contextmanager
def read_as_configured(reference: str) -> Iterator[None]:
    """Say in one sentence that a model cannot be used as its configuration has it, whatever a library or a comparison stumbles over.

    Raises:
        ConfigurationError: something else than an error of HERON's own was raised inside.

    """
    try:
        yield
    except HeronError:
        raise
    except Exception as exc:
        first = (str(exc).strip().splitlines() or ["no message"])[0]
        raise ConfigurationError(
            f"the configuration of {reference!r} contradicts itself ({type(exc).__name__}: {first[:200]}): mend its config.json, or use another model"
        ) from exc


def _loaded(reference: str, load: Callable[[], T], what: str) -> T:
    try:
        return load()
    # The libraries raise whatever they stumble over in a folder.
    except Exception as exc:
        first = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
        if Path(reference).is_dir():
            raise ConfigurationError(
                f"folder {reference!r} holds no {what.removeprefix('a ')} that transformers can use ({first[:200]}): "
                "it needs config.json, model.safetensors and, for text, tokenizer.json; for weights drawn at random add weights=random to --model-options"
            ) from exc
        raise ConfigurationError(
            f"model {reference!r} is no folder here, not in the hub's cache, and the hub did not give {what} ({first[:160]}): "
            "fetch it where there is a network and give its folder, --model hf:FOLDER"
        ) from exc


def _silence() -> None:
    """Leave it to this program to speak: transformers tells of odd configurations at every start."""
    import transformers.utils.logging as verbosity

    verbosity.set_verbosity_error()  # type: ignore[no-untyped-call]
    verbosity.disable_progress_bar()  # type: ignore[no-untyped-call]


def set_frozen(module: nn.Module, but: Callable[[str], bool]) -> None:
    """Freeze every parameter except those whose name `but` accepts."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(but(name))
