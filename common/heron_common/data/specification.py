"""What a run expects of data, written as a short text: the forms of `--data-spec`."""

from __future__ import annotations

import dataclasses
import math

from heron_common.data.cifar import CIFAR_10_SPECIFICATION
from heron_common.data.digits import DIGITS_SPECIFICATION
from heron_common.data.fashion_mnist import FASHION_MNIST_SPECIFICATION
from heron_common.data.numbers import decimal_number, whole_number
from heron_common.errors import ConfigurationError
from heron_common.specification.data_specification import MAX_COLUMNS, MAX_LENGTHS, DataSpecification, Task

SPECIFICATIONS: dict[str, DataSpecification] = {
    specification.name: specification for specification in (DIGITS_SPECIFICATION, FASHION_MNIST_SPECIFICATION, CIFAR_10_SPECIFICATION)
}
"""Specifications that have a name of their own."""

SPECIFICATION_FORMS = (
    f"{', '.join(SPECIFICATIONS)}, or SHAPE:CLASSES[:MEAN:STANDARD_DEVIATION] or SHAPE:regression:OUTPUTS[:MEAN:STANDARD_DEVIATION] for numbers, "
    "or text:LENGTH:CLASSES, text:LENGTH:regression:OUTPUTS or text:LENGTH:next-token for text of LENGTH tokens; SHAPE is like 1x28x28, or names of "
    "columns like temperature+pressure, LENGTH a "
    "number or several like 32,64,128, CLASSES a number or names like cat,dog, and MEAN and STANDARD_DEVIATION a number, or one for each channel "
    "like 0.5,0.4,0.4"
)
"""Every form that `parse_specification` reads, for messages and help."""


def parse_specification(text: str) -> DataSpecification:
    """Read a name like `digits`, or a description like `1x28x28:10:0.28:0.35` or `text:64:negative,positive`.

    The vocabulary of a next-token run, its `num_classes`, is 0 until a model with a tokenizer fills it in.

    Raises:
        ConfigurationError: it is neither; the message shows every form. Or lengths of text are not ascending; the message has them in order.

    """
    if text in SPECIFICATIONS:
        return SPECIFICATIONS[text]
    try:
        words = text.split(":")
        is_text = words[0] == "text"
        lengths = _lengths(text, words[1]) if is_text else ()
        columns = _columns(words[0])
        shape = lengths[-1:] if is_text else (len(columns),) if columns else tuple(whole_number(part) for part in words[0].split("x"))
        if min(shape) < 1:
            raise ValueError
        form = DataSpecification(text, shape, num_classes=0, tokens=is_text, lengths=lengths if len(lengths) > 1 else (), columns=columns)
        task, rest = _task(form, words[2 if is_text else 1 :])
        return _normalised(task, rest)
    except (ValueError, IndexError):
        raise ConfigurationError(f"unknown data specification {text!r}: write one of {SPECIFICATION_FORMS}") from None


def _columns(word: str) -> tuple[str, ...]:
    """Read names of columns; nothing if these are none."""
    names = tuple(word.split("+")) if "+" in word else ()
    if "" in names or len(set(names)) < len(names) or len(names) > MAX_COLUMNS:
        raise ValueError
    return names


def _lengths(text: str, word: str) -> tuple[int, ...]:
    """Read one length of text, or several."""
    lengths = tuple(whole_number(part) for part in word.split(","))
    if len(lengths) > MAX_LENGTHS:
        raise ConfigurationError(f"texts have at most {MAX_LENGTHS} lengths in a run, but {text!r} has {len(lengths)}: write fewer")
    if len(lengths) > 1:
        ordered = sorted({length for length in lengths if length > 0})
        if list(lengths) != ordered:
            instead = text.replace(word, ",".join(map(str, ordered)) or "LENGTH", 1)
            raise ConfigurationError(
                f"lengths of text are 1 or more, each greater than the one before, but {text!r} has {word}: write {instead}"
            )
    return lengths


def _task(form: DataSpecification, words: list[str]) -> tuple[DataSpecification, list[str]]:
    """Read what is asked for; returns what stands behind it."""
    if words[0] == "next-token" and form.tokens:
        return dataclasses.replace(form, task=Task.NEXT_TOKEN), words[1:]
    if words[0] == "regression":
        outputs = whole_number(words[1])
        if outputs < 1:
            raise ValueError
        return dataclasses.replace(form, task=Task.REGRESSION, num_classes=outputs), words[2:]
    names = tuple(name.strip() for name in words[0].split(",")) if "," in words[0] else ()
    num_classes = len(names) or whole_number(words[0])
    if num_classes < 2 or "" in names or len(set(names)) < len(names):
        raise ValueError
    return dataclasses.replace(form, num_classes=num_classes, class_names=names), words[1:]


def _normalised(form: DataSpecification, words: list[str]) -> DataSpecification:
    """Read mean and standard deviation, which text has none of."""
    if len(words) > (0 if form.tokens else 2):
        raise ValueError
    means, deviations = ([decimal_number(number) for number in word.split(",")] for word in (words + ["0", "1"][len(words) :]))
    if not all(map(math.isfinite, means)) or not all(0 < deviation < math.inf for deviation in deviations):
        raise ValueError
    if len(means) == len(deviations) == 1:
        return dataclasses.replace(form, mean=means[0], standard_deviation=deviations[0])
    channels = form.input_shape[0]
    if {len(means), len(deviations)} - {1, channels}:
        raise ValueError
    # One number beside one for each channel counts for every channel.
    return dataclasses.replace(
        form, channel_means=tuple(means * (channels // len(means))), channel_deviations=tuple(deviations * (channels // len(deviations)))
    )
