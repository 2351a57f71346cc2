"""Samples as a run wants them: whatever a source has on disk becomes x and y, a batch at a time."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from heron_common.data.image_files import ImageFiles
from heron_common.data.labels import LabelReader
from heron_common.data.number_samples import NumberSamples
from heron_common.data.rows import StringRows
from heron_common.data.sources import DataSource
from heron_common.data.tally import SampleTally
from heron_common.data.text_files import TextFiles
from heron_common.data.text_samples import TextSamples, TokenSamples
from heron_common.data.tokeniser import Tokeniser
from heron_common.errors import DataError
from heron_common.numerics.tensors import Int64Array
from heron_common.specification.data_specification import IGNORED, DataSpecification, Task
from heron_common.specification.text_lengths import cut_to_length, smallest_lengths

Samples = npt.NDArray[Any]

_ROWS_AT_ONCE = 256

_LOOKED_AT = 4096
"""Samples that say enough about the others."""


class _Inputs(Protocol):
    def read(self, rows: Int64Array) -> tuple[Samples, Samples | None, Int64Array]:
        """Return x, labels if they follow from x, and how many tokens each sample has."""
        ...


class SampleReader:
    """Reads batches of one source for one run.

    x is float32 [n, *input_shape], normalised, or int64 token ids [n, T], PADDING behind the end of a text. y is int64 [n] of classes, float32
    [n, num_classes] of numbers, or int64 [n, T] of the tokens that follow, IGNORED where none does and where the next one belongs to a prompt.
    Special tokens frame texts that have one label; where each token is predicted, a text stands as it is. Of a run with several lengths T is the
    greatest, unless a batch is asked for at another.
    """

    def __init__(self, source: DataSource, specification: DataSpecification, tokenizer: bytes | None = None) -> None:
        """Compare the form of the source with what the run expects; `tokenizer` is the document that the specification names.

        Raises:
            DataError: they differ.
            ConfigurationError: a library that this source needs is not installed.

        """
        _check_content(source, specification)
        reads_text = specification.tokens and isinstance(source.inputs, StringRows | TextFiles)
        tokeniser = Tokeniser(tokenizer) if tokenizer is not None and reads_text else None
        self.specification = specification
        self.source = source.fitted(specification, tokeniser)
        self._inputs = _inputs_of(self.source, specification, tokeniser)
        labels = self.source.labels
        self._predicts = specification.task is Task.NEXT_TOKEN
        # Labels of another form are those of whole texts: a partition may go by them, training does not.
        self.has_own_labels = labels.shape[1:] == specification.input_shape and not isinstance(labels, StringRows)
        self._labels = LabelReader(labels, specification, source.name)
        self._cut = np.zeros(self.num_examples, bool)
        self.seen = SampleTally(specification)
        """Of the first batches that were read."""

    @property
    def num_examples(self) -> int:
        """How many samples there are."""
        return self.source.num_examples

    @property
    def truncated(self) -> int:
        """How many of the texts that were read so far were too long and cut off."""
        return int(self._cut.sum())

    def batch(self, indices: Int64Array, length: int = 0) -> tuple[Samples, Samples]:
        """Read the samples at these indices of the source; texts at this length, which must hold them, or at the run's greatest.

        Raises:
            DataError: a sample or a label is not what the run expects.

        """
        x, following, _ = self._read(indices)
        y = following if following is not None else self.labels(indices)
        if self.seen.num_samples < _LOOKED_AT:
            self.seen.add(x, y)
        if length:
            return cut_to_length(x, length), cut_to_length(y, length) if self._predicts else y
        return x, y

    def shortest_batch(self, indices: Int64Array) -> tuple[Samples, Samples]:
        """Read the samples at these indices; texts at the smallest of the run's lengths that holds all of them. Raises like `batch`."""
        x, y = self.batch(indices)
        if not self.specification.lengths:
            return x, y
        length = int(self._smallest(x, y).max())
        return cut_to_length(x, length), cut_to_length(y, length) if self._predicts else y

    def lengths(self) -> Int64Array | None:
        """Return for each sample the smallest of the run's lengths that holds it, None where there is but one; reads the source once, a little at a time.

        Raises:
            DataError: a sample is not what the run expects.

        """
        if not self.specification.lengths:
            return None
        pieces = (np.arange(start, min(start + _ROWS_AT_ONCE, self.num_examples)) for start in range(0, self.num_examples, _ROWS_AT_ONCE))
        return np.concatenate([self._smallest(*self.batch(indices)) for indices in pieces])

    def inputs(self, indices: Int64Array) -> tuple[Samples, Int64Array]:
        """Read samples alone, and how many tokens the whole text of each has; a sample of numbers has none.

        Raises:
            DataError: a sample is not what the run expects.

        """
        x, _, lengths = self._read(indices)
        return x, lengths

    def labels(self, indices: Int64Array) -> Samples:
        """Read labels alone.

        Raises:
            DataError: one is not what the run expects.

        """
        rows = self.source.rows[indices]
        if not self._predicts:
            return self._labels.read(rows)
        if not self.has_own_labels:
            return self.batch(indices)[1]
        raw = self.source.labels.read(rows)
        if raw.dtype.kind not in "iu":
            raise DataError(f"labels of tokens are whole numbers, but {self.source.name!r} has {raw.dtype}: store them as integers")
        labels = raw.astype(np.int64)
        most = self.specification.num_classes
        bad = np.argwhere(((labels < 0) & (labels != IGNORED)) | ((labels >= most) & (most > 0)))
        if bad.size:
            came = labels[tuple(bad[0])]
            raise DataError(
                f"labels of tokens are {IGNORED} or from 0 to {most - 1}, but {self.source.name!r} has {came}: "
                f"mend them (first at sample {int(rows[bad[0][0]])})"
            )
        return labels

    def _smallest(self, x: Samples, y: Samples) -> Int64Array:
        return smallest_lengths(x, y if self._predicts else None, self.specification.lengths)

    def _read(self, indices: Int64Array) -> tuple[Samples, Samples | None, Int64Array]:
        x, following, lengths = self._inputs.read(self.source.rows[indices])
        if self.specification.tokens:
            self._cut[indices] = lengths > self.specification.input_shape[0]
        return x, None if self.has_own_labels else following, lengths


def _check_content(source: DataSource, specification: DataSpecification) -> None:
    if specification.tokens and isinstance(source.inputs, ImageFiles):
        raise DataError(
            f"the run expects text ({specification.name}), but {source.name!r} holds images: choose other data or another --data-spec on the server"
        )
    if isinstance(source.inputs, TextFiles) and specification.task is not Task.NEXT_TOKEN:
        raise DataError(
            f"{source.name!r} is running text, which fits only a run that predicts the next token, but the run expects {specification.name}: "
            "choose other data or another --data-spec on the server"
        )


def _inputs_of(source: DataSource, specification: DataSpecification, tokeniser: Tokeniser | None) -> _Inputs:
    if not specification.tokens:
        return NumberSamples(source.inputs, specification, source.name)
    if isinstance(source.inputs, StringRows):
        return TextSamples(source.inputs, specification, tokeniser=tokeniser, source_name=source.name)
    return TokenSamples(source.inputs, specification, source.name)
