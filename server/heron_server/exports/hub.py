"""A transformer as a folder that `from_pretrained` loads: the model with its adapters merged, or the model and its adapters apart."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from heron_common.specification.data_specification import Task
from heron_server.exports.formats import Run
from heron_server.exports.place import NOTE
from heron_server.exports.whole import Whole
from heron_server.models.split_model import SplitModel
from heron_server.models.transformer.pretrained import PREFIX

BASE = "base"
"""Folder of the model without its adapters, below the one of the adapters: its last layers were trained too, so the original would not do."""


def write_folder(whole: Whole, split: SplitModel, *, reference: str, note: dict[str, Any], folder: Path) -> None:
    """Write weights, configuration, tokenizer and note; a model that has adapters still is written apart from them, into `base`.

    Args:
        whole: of `split`; its adapters are taken out of it.
        split: for the tokenizer and the task.
        reference: folder or name that the model came from; it may have a chat template.
        note: about the origin.
        folder: to be made.

    """
    folder.mkdir()
    model: Any = whole.module
    base = folder
    with warnings.catch_warnings():
        # peft asks transformers in a way that is going out of use; nobody here can change that.
        warnings.simplefilter("ignore", FutureWarning)
        if hasattr(model, "merge_and_unload"):
            base = folder / BASE
            for configuration in model.peft_config.values():
                # Not the path that it has here; whoever loads the adapters gives the base, whatever this says.
                configuration.base_model_name_or_path = BASE
            model.save_pretrained(folder, save_embedding_layers=False)
            # peft's card repeats what the note says, with gaps to be filled in by hand.
            (folder / "README.md").unlink(missing_ok=True)
            model = model.unload()
        model.config.use_cache = split.task is Task.NEXT_TOKEN
        model.save_pretrained(base)
    if split.tokenizer is not None:
        _write_tokenizer(split.tokenizer, model.config, reference=reference.removeprefix(PREFIX), longest=whole.longest, folder=base)
    (folder / NOTE).write_text(json.dumps(note, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def open_folder(split: SplitModel, folder: Path) -> Run:
    """Load what `write_folder` wrote with transformers, and with peft if there are adapters."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind: Any = AutoModelForCausalLM if split.task is Task.NEXT_TOKEN else AutoModelForSequenceClassification
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if (folder / BASE).is_dir():
            import peft

            model: Any = peft.PeftModel.from_pretrained(kind.from_pretrained(folder / BASE), folder)
        else:
            model = kind.from_pretrained(folder)
    model.eval()
    return lambda inputs: model(input_ids=inputs[0], attention_mask=inputs[1]).logits


def _write_tokenizer(document: bytes, config: Any, *, reference: str, longest: int | None, folder: Path) -> None:
    """Write the run's tokenizer so that AutoTokenizer gives the same tokens, with what the original knows beside: special tokens, chat template."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    backend = Tokenizer.from_str(document.decode())
    # How long a text may be is said below; what the document says of it did not count in the run.
    backend.no_truncation()
    backend.no_padding()
    known: dict[str, Any] = {}
    try:
        original = AutoTokenizer.from_pretrained(reference)
        known = {name: value for name, value in original.special_tokens_map.items() if isinstance(value, str)}
        template = original.chat_template
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError):
        # The folder has moved, or holds no more than tokenizer.json: the configuration's numbers must do.
        template = None
    for name in ("pad_token", "eos_token", "bos_token"):
        number = getattr(config, f"{name}_id", None)
        token = backend.id_to_token(number) if isinstance(number, int) else None
        if token is not None:
            known.setdefault(name, token)
    known |= {"model_max_length": longest} if longest is not None else {}
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=backend, padding_side="right", **known)
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
