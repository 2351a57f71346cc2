"""A tokenizer with a word a token, as the JSON that a server hands out."""

from __future__ import annotations

import hashlib

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from heron_common.specification.model_spec import BlobReference

UNKNOWN, START, END = 0, 1, 2


def word_tokenizer(words: str, framed: bool = False) -> bytes:
    """Return a tokenizer that numbers these words from 3 on; `framed` puts START and END around a whole text.

    Its own truncation and padding must not count: the run's length does.
    """
    vocabulary = {"[UNK]": UNKNOWN, "[CLS]": START, "[SEP]": END} | {word: 3 + place for place, word in enumerate(words.split())}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if framed:
        tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", START), ("[SEP]", END)])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    return tokenizer.to_str().encode()


def reference_of(document: bytes) -> BlobReference:
    """Return how a specification names it."""
    return BlobReference(hashlib.sha256(document).hexdigest(), len(document))
