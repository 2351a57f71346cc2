"""The samples that a user's model is tried on before it is trained: the operator's own where there are any, else made up, the same always."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from heron_common.data.reading import SampleReader
from heron_common.data.sources import DataSource
from heron_common.specification.data_specification import DataSpecification
from heron_server.models.token_input import vocabulary_of

_NUMBERS = 1 << 16
"""A model is run once on all of them, so that nothing that is tried later is new to it: as many samples as have so many numbers together ..."""

_FEWEST, _MOST = 16, 256
"""... but no fewer and no more than these."""

_TOKENS = 1 << 12
"""Of tokens fewer: a model does far more with each."""


@dataclass(frozen=True)
class Probes:
    """Samples [N, *input_shape], float32 numbers or int64 tokens with PADDING behind the ends, and what a sentence calls them."""

    x: npt.NDArray[Any]
    are_made_up: bool

    @property
    def called(self) -> str:
        """What a sentence calls them."""
        return "samples of standard normal numbers" if self.are_made_up else "samples of the run's own data"

    @property
    def remedy(self) -> str:
        """What a sentence advises where a model does not like them."""
        if not self.are_made_up:
            return "mend the model, or the samples"
        return "where the model takes only other numbers (positive ones, categories), give --eval-data, whose samples it is then tried on"

    def first(self, rows: int) -> torch.Tensor:
        """Return the first of them, from the beginning again where there are fewer."""
        return torch.from_numpy(self.x[np.arange(rows) % len(self.x)])

    def draw(self, rows: int, generator: np.random.Generator) -> npt.NDArray[Any]:
        """Return some of them, none twice where there are enough."""
        return self.x[generator.choice(len(self.x), rows, replace=rows > len(self.x))]


def made_up(shape: tuple[int, ...]) -> Probes:
    """Return standard normal numbers, which are the same for every seed of a run: so is what is said of them."""
    generator = np.random.Generator(np.random.Philox(key=0))
    return Probes(generator.standard_normal((_count(_NUMBERS, shape), *shape), np.float32), are_made_up=True)


def probes_of(reader: SampleReader) -> Probes:
    """Return samples from all over a source.

    Raises:
        DataError: a sample is not what the run expects.

    """
    together = _TOKENS if reader.specification.tokens else _NUMBERS
    wanted = min(_count(together, reader.specification.input_shape), reader.num_examples)
    x, _ = reader.inputs(np.linspace(0, reader.num_examples - 1, wanted).round().astype(np.int64))
    return Probes(x, are_made_up=False)


def probes_for(source: DataSource, data: DataSpecification, *, family: str, options: Mapping[str, Any]) -> Probes:
    """Return samples from all over a source for a user's model of these options; text becomes tokens by the tokenizer that they name.

    Raises:
        DataError: a sample is not what the run expects.
        ConfigurationError: the options do not say what tokens there are.

    """
    return probes_of(SampleReader(source, data, vocabulary_of(family, options).tokenizer if data.tokens else None))


def _count(together: int, shape: tuple[int, ...]) -> int:
    return min(max(together // max(1, math.prod(shape)), _FEWEST), _MOST)
