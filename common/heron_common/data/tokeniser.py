"""Text to token ids by the tokenizer that a run names; the library is imported only where there is text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from heron_common.errors import ConfigurationError, DataError

MAX_TOKENIZER_BYTES = 64 << 20
"""The largest published tokenizers have about twenty million bytes of JSON; a client takes no more than this."""


@dataclass(frozen=True)
class TokenisedText:
    """Token ids of a whole text, and how many of the last ones close every text, like BERT's [SEP]."""

    ids: list[int]
    num_closing: int = 0

    def cut(self, length: int) -> list[int]:
        """Return at most `length` ids; what closes a text is kept."""
        if len(self.ids) <= length:
            return self.ids
        closing = self.ids[len(self.ids) - self.num_closing :] if 0 < self.num_closing < length else []
        return self.ids[: length - len(closing)] + closing


class Tokeniser:
    """A tokenizer, given as its JSON (`tokenizer.json`)."""

    def __init__(self, document: bytes) -> None:
        """Load it.

        Raises:
            ConfigurationError: the library is not installed.
            DataError: the document is no tokenizer.

        """
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ConfigurationError(
                "the run's samples are text, but the library tokenizers is not installed here: pip install 'heron-sfl[text]'"
            ) from None
        with _refusals():
            self._tokenizer: Any = Tokenizer.from_buffer(document)
        # A published document may say how its own model cut and padded; the run's length counts here.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.sha256 = hashlib.sha256(document).hexdigest()

    def plain(self, text: str) -> list[int]:
        """Return the tokens of a text and nothing else.

        Raises:
            DataError: the tokenizer cannot say what they are.

        """
        with _refusals():
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def framed(self, texts: Sequence[str]) -> list[TokenisedText]:
        """Return the tokens of whole texts, with what the tokenizer puts around one.

        Raises:
            DataError: the tokenizer cannot say what they are.

        """
        with _refusals():
            encoded = self._tokenizer.encode_batch(list(texts))
        return [TokenisedText(e.ids, _closing(e.special_tokens_mask)) for e in encoded]


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn what the library raises into a DataError: plain exceptions and, where its native part panics, one that is no Exception."""
    try:
        yield
    except BaseException as exc:
        if isinstance(exc, KeyboardInterrupt | SystemExit):
            raise
        raise DataError(f"the run's tokenizer cannot be loaded or used ({str(exc)[:500]}): give the server another tokenizer.json") from exc


def _closing(special: list[int]) -> int:
    count = 0
    while count < len(special) and special[-1 - count]:
        count += 1
    return count
