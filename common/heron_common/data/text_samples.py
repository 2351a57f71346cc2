"""Samples of text or of token ids: x [n, T] with PADDING behind the end, and for next-token the labels that follow from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from heron_common.data.rows import RowReader, StringRows
from heron_common.data.tokeniser import TokenisedText, Tokeniser
from heron_common.errors import DataError
from heron_common.numerics.tensors import Int64Array
from heron_common.specification.data_specification import IGNORED, PADDING, DataSpecification, Task


class TextSamples:
    """Tokenises rows of text as they are read; for next-token two columns are a prompt, which is not to be predicted, and what follows it."""

    def __init__(self, rows: StringRows, specification: DataSpecification, *, tokeniser: Tokeniser | None, source_name: str) -> None:
        """Check that the columns can be a sample of this run.

        Raises:
            DataError: the run names no tokenizer, or there are too many columns.

        """
        self._predicts = specification.task is Task.NEXT_TOKEN
        if tokeniser is None:
            raise DataError(f"{source_name!r} is text, but the run names no tokenizer: choose a --model with one on the server")
        most = 2 if self._predicts else 1
        if len(rows.columns) > most:
            raise DataError(
                f"the run expects {'a text, or a prompt and a completion' if most == 2 else 'one text'} a sample, "
                f"but {source_name!r} names {len(rows.columns)} columns: name at most {most}"
            )
        self._rows = rows
        self._length = specification.input_shape[0]
        self._refuses = specification.refuses_overlong
        self._tokeniser = tokeniser

    def read(self, rows: Int64Array) -> tuple[Int64Array, Int64Array | None, Int64Array]:
        """Return x, for next-token the labels, and how many tokens each whole text has.

        Raises:
            DataError: a text is empty, or too long in a run that refuses such.

        """
        texts, prompts = self._tokenised(self._rows.read(rows))
        lengths = np.array([len(text.ids) for text in texts], np.int64)
        for row, length in zip(rows, lengths, strict=True):
            self._check_length(int(row), int(length))
        x = np.full((len(rows), self._length), PADDING, np.int64)
        y = np.full_like(x, IGNORED) if self._predicts else None
        for place, text in enumerate(texts):
            ids = text.cut(self._length)
            x[place, : len(ids)] = ids
            if y is not None:
                # A prompt of p tokens is predicted up to its last: what is asked for first is the token behind it.
                first = max(prompts[place], 1)
                following = text.ids[first : self._length + 1]
                y[place, first - 1 : first - 1 + len(following)] = following
        return x, y, lengths

    def _tokenised(self, raw: npt.NDArray[Any]) -> tuple[Sequence[TokenisedText], list[int]]:
        if not self._predicts:
            return self._tokeniser.framed(raw[:, 0].tolist()), []
        columns = [[self._tokeniser.plain(text) for text in row] for row in raw]
        prompts = [len(row[0]) if len(row) == 2 else 0 for row in columns]
        return [TokenisedText([token for part in row for token in part]) for row in columns], prompts

    def _check_length(self, row: int, length: int) -> None:
        if length == 0:
            raise DataError(f"{self._rows.place(row)} should hold a text, but has no token: remove the sample")
        if length > self._length and self._refuses:
            raise DataError(
                f"{self._rows.place(row)} has {length} tokens, but the run takes at most {self._length} and refuses longer text: "
                "shorten it, or start the server with --overlong truncate"
            )


class TokenSamples:
    """Token ids that a source has ready: [n, T], or [n, T + 1] where the last is only to be predicted."""

    def __init__(self, rows: RowReader, specification: DataSpecification, source_name: str) -> None:
        """Check the shape.

        Raises:
            DataError: it is not the run's.

        """
        length = specification.input_shape[0]
        self._predicts = specification.task is Task.NEXT_TOKEN
        allowed = [(length,), (length + 1,)] if self._predicts else [(length,)]
        if rows.shape[1:] not in allowed:
            raise DataError(
                f"the run expects {length} tokens a sample{' (or one more to predict)' if self._predicts else ''} ({specification.name}), "
                f"but {source_name!r} has samples of shape {list(rows.shape[1:])}: choose other data or another --data-spec on the server"
            )
        self._rows = rows
        self._length = length
        # Only the vocabulary of a next-token run is known; what a classifier's model knows is the model's to check.
        self._vocabulary = specification.num_classes if self._predicts and specification.num_classes else math.inf
        self._name = source_name

    def read(self, rows: Int64Array) -> tuple[Int64Array, Int64Array | None, Int64Array]:
        """Return x, for next-token the labels, and how many tokens each sample has.

        Raises:
            DataError: what was read are no token ids.

        """
        raw = self._rows.read(rows)
        if raw.dtype.kind not in "iu":
            raise DataError(f"token ids are whole numbers, but {self._name!r} has {raw.dtype}: store them as integers")
        tokens = raw.astype(np.int64)
        bad = np.argwhere((tokens < PADDING) | (tokens >= self._vocabulary))
        if bad.size:
            sample, element = bad[0]
            raise DataError(
                f"token ids are {PADDING} behind the end or from 0 to {self._vocabulary - 1}, but {self._name!r} has {tokens[sample, element]}: "
                f"tokenise the text anew (first at sample {int(rows[sample])})"
            )
        x = tokens[:, : self._length]
        lengths = (x != PADDING).sum(1)
        if not self._predicts:
            return x, None, lengths
        y = np.full_like(x, IGNORED)
        following = tokens[:, 1:]
        y[:, : following.shape[1]] = np.where(following == PADDING, IGNORED, following)
        return np.ascontiguousarray(x), y, lengths
