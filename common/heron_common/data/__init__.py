"""Data on a device: named sources that read batches from disk, shards of them, and checks against a run's specification."""

from heron_common.data.reading import SampleReader
from heron_common.data.sources import DataSource, open_source, source_names

__all__ = ["DataSource", "SampleReader", "open_source", "source_names"]
