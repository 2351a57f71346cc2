"""Look at a whole shard through a run's eyes: what it holds, and everything in it that does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import TypeVar

import numpy as np

from heron_common.data.columns import order_in_words, shortened
from heron_common.data.labels import LabelReader
from heron_common.data.reading import SampleReader, Samples
from heron_common.data.sources import DataSource
from heron_common.data.tally import FAR_FROM_NORMAL, SampleTally
from heron_common.errors import DataError
from heron_common.numerics.tensors import Int64Array
from heron_common.specification.data_specification import IGNORED, DataSpecification, Task
from heron_common.specification.text_lengths import smallest_lengths

_ROWS_AT_ONCE = 256
_SHOWN = 20

T = TypeVar("T")


@dataclass
class Inspection:
    """What a shard holds.

    Attributes:
        name: of the source.
        num_examples: samples of the shard; 0 if they cannot be counted.
        sample: shape and type of one sample, as the run gets it; empty if there is none.
        columns: those that a sample is read from, in their order; empty if they have no names.
        left_out: files of a folder that are not read, by kind; empty if there are none.
        labels: what the labels are, in words.
        absent: classes of the run that no sample of the shard belongs to.
        longest: tokens of the longest text.
        overlong: texts that are longer than the run takes.
        by_length: how many texts are padded to each of the run's lengths, if it has several.
        figures: what x looks like to the model, by name.
        warning: what fits, but is likely to train badly; empty if there is nothing.
        differences: the first sentences about what does not fit, and how often each holds.
        further: how many other things do not fit.

    """

    name: str
    _: KW_ONLY
    num_examples: int
    sample: str = ""
    columns: str = ""
    left_out: str = ""
    labels: str = ""
    absent: list[str] = field(default_factory=list)
    longest: int = 0
    overlong: int = 0
    by_length: dict[int, int] = field(default_factory=dict)
    figures: list[tuple[str, str]] = field(default_factory=list)
    warning: str = ""
    differences: Counter[str] = field(default_factory=Counter)
    further: int = 0

    @property
    def num_differences(self) -> int:
        """How many times something did not fit."""
        return self.differences.total() + self.further

    def differs(self, sentence: str) -> None:
        """Note what does not fit; only so many different sentences are kept as are shown."""
        if sentence in self.differences or len(self.differences) < _SHOWN:
            self.differences[sentence] += 1
        else:
            self.further += 1


def inspect_source(source: DataSource, specification: DataSpecification, tokenizer: bytes | None) -> Inspection:
    """Read every sample and label of the shard once.

    Raises:
        ConfigurationError: a library that this source needs is not installed.

    """
    found = Inspection(source.name, num_examples=source.num_examples, by_length=dict.fromkeys(specification.lengths, 0))
    found.columns = order_in_words(source.inputs, specification)
    found.left_out = source.left_out.sentence if source.left_out is not None else ""
    try:
        reader = SampleReader(source, specification, tokenizer)
    except DataError as exc:
        found.differs(str(exc))
        if specification.task is not Task.NEXT_TOKEN and source.is_counted:
            _inspect_labels_alone(source, specification, found)
        return found
    found.num_examples = reader.num_examples
    tally, values = _LabelTally(specification), SampleTally(specification)
    for indices in _pieces(reader.num_examples):
        for x, lengths in _readable(reader.inputs, indices, found):
            values.add(x)
            _note_samples(x, lengths, reader=reader, found=found)
        if specification.task is not Task.NEXT_TOKEN or reader.has_own_labels:
            for labels in _readable(reader.labels, indices, found):
                tally.add(labels)
    tally.describe(found)
    found.figures, found.warning = values.rows(), FAR_FROM_NORMAL if values.is_far_from_normal else ""
    return found


def _inspect_labels_alone(source: DataSource, specification: DataSpecification, found: Inspection) -> None:
    try:
        reader = LabelReader(source.labels, specification, source.name)
    except DataError as exc:
        found.differs(str(exc))
        return
    tally = _LabelTally(specification)
    for indices in _pieces(source.num_examples):
        for labels in _readable(lambda some: reader.read(source.rows[some]), indices, found):
            tally.add(labels)
    tally.describe(found)


def _pieces(count: int) -> Iterator[Int64Array]:
    return (np.arange(start, min(start + _ROWS_AT_ONCE, count)) for start in range(0, count, _ROWS_AT_ONCE))


def _readable(read: Callable[[Int64Array], T], indices: Int64Array, found: Inspection) -> Iterator[T]:
    """Yield what can be read: all at once or, if something does not fit, one by one, to find everything that does not."""
    try:
        yield read(indices)
        return
    except DataError:
        pass
    for index in indices:
        try:
            one = read(np.array([index]))
        except DataError as exc:
            found.differs(str(exc))
            continue
        yield one


def _note_samples(x: Samples, lengths: Int64Array, *, reader: SampleReader, found: Inspection) -> None:
    found.sample = f"{list(x.shape[1:])} {x.dtype}{', tokens' if reader.specification.tokens else ''}"
    found.longest = max(found.longest, int(lengths.max()))
    found.overlong = reader.truncated
    if found.by_length:
        for length in smallest_lengths(x, None, reader.specification.lengths):
            found.by_length[int(length)] += 1


class _LabelTally:
    """Counts classes, or keeps the range of numbers."""

    def __init__(self, specification: DataSpecification) -> None:
        self._specification = specification
        self._counts = np.zeros(max(specification.num_classes, 1), np.int64)
        self._least, self._most = np.inf, -np.inf
        self._seen = False

    def add(self, labels: Samples) -> None:
        self._seen = True
        if self._specification.task is Task.CLASSIFICATION:
            self._counts += np.bincount(labels, minlength=len(self._counts))
            return
        known = labels[labels != IGNORED] if self._specification.task is Task.NEXT_TOKEN else labels
        if known.size:
            self._least, self._most = min(self._least, float(known.min())), max(self._most, float(known.max()))

    def describe(self, found: Inspection) -> None:
        specification = self._specification
        if specification.task is Task.NEXT_TOKEN:
            found.labels = "the token that follows each"
        elif not self._seen:
            return
        elif specification.task is Task.REGRESSION:
            found.labels = f"{specification.num_classes} numbers, from {self._least:g} to {self._most:g}"
        else:
            names = specification.class_names or tuple(map(str, range(specification.num_classes)))
            present = [f"{name} {count}" for name, count in zip(names, self._counts, strict=True) if count]
            found.labels = shortened(present)
            found.absent = [name for name, count in zip(names, self._counts, strict=True) if not count]


def page(found: Inspection, length: int) -> list[str]:
    """Return the inspection as the lines of a page; `length` is how many tokens the run takes, 0 if samples are no text."""
    rows = [("data", found.name), ("samples", str(found.num_examples or "not known"))]
    described = (("left out", found.left_out), ("columns", found.columns), ("a sample", found.sample), ("labels", found.labels))
    rows += [(title, text) for title, text in described if text]
    if found.absent:
        rows.append(("no sample of", shortened(found.absent)))
    if found.longest and length:
        rows.append(
            (
                "longest text",
                f"{found.longest} tokens; {found.overlong} of {found.num_examples} have more than the {length} that the run takes",
            )
        )
    if found.longest and found.by_length:
        rows.append(("by length", ", ".join(f"{count} of up to {length} tokens" for length, count in found.by_length.items())))
    lines = [f"{title:<14}{text}" for title, text in [*rows, *found.figures]]
    if found.warning:
        lines.append(f"warning: {found.warning}")
    for sentence, count in found.differences.items():
        lines.append(f"does not fit: {sentence}{f' ({count} times)' if count > 1 else ''}")
    if found.further:
        lines.append(f"and {found.further} more that do not fit")
    return [*lines, *([] if found.differences else ["fits the run"])]
