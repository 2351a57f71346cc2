"""Every error that HERON raises, as one tree.

    HeronError
      ConfigurationError        an option, file or environment variable is wrong; all mistakes in one message
        InUseError              another process uses a directory that is for one
        ClockError              this machine's clock contradicts a certificate; passes once the clock is set
      UnsupportedError          this processor or C library cannot run the libraries underneath
      SelfCheckError            a device was checked before a run and something stands in its way
      DataError                 the data at hand is not what was promised
      ProgramError              a program cannot be built, is not what its digest says, or does not match the model
        ParityError             an exported program differs from the model it came from
      StorageError              disk: checkpoint, spool or state directory
        CheckpointError         a checkpoint cannot be written or none can be read
        SpoolFullError          an upload does not fit the spool's byte budget now
      RefusedError              the server refuses a request; carries a code of the catalog, travels over the wire
      TransportError            the other side could not be reached or stopped answering
      Interrupted               a signal asked this process to stop; not a failure

Each message is one sentence: what was expected, what came, what to do.
"""

from __future__ import annotations

from heron_common.error_catalog import ErrorCode


class HeronError(Exception):
    """Base of all errors that HERON raises on purpose; each argument is one mistake's sentence."""

    def __str__(self) -> str:
        return "; ".join(self.sentences)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What is wrong, mistake by mistake."""
        return tuple(map(str, self.args))


class ConfigurationError(HeronError):
    """An option, a configuration file or an environment variable is wrong."""


class InUseError(ConfigurationError):
    """Another process uses a directory that is for one."""


class ClockError(ConfigurationError):
    """The clock of this machine contradicts a certificate; many devices start with a wrong one and set it minutes later."""


class UnsupportedError(HeronError):
    """The processor or C library cannot run the libraries underneath; no restart changes that."""


class SelfCheckError(HeronError):
    """A device was checked before a run and something stands in its way; what was printed says what."""


class DataError(HeronError):
    """The data at hand is not what was promised: shape, dtype, label, file."""


class ProgramError(HeronError):
    """A program cannot be built, is not what its digest says, or does not match the model."""


class ParityError(ProgramError):
    """An exported program differs from the model it came from, so it is not published."""


class StorageError(HeronError):
    """A disk operation failed; what was stored before is intact."""


class CheckpointError(StorageError):
    """A checkpoint cannot be written, or none can be read."""


class SpoolFullError(StorageError):
    """An upload does not fit the spool's byte budget now."""


class RefusedError(HeronError):
    """The server refuses a request.

    Attributes:
        code: the catalog's code; decides the gRPC status and whether a retry can help.
        retry_after_seconds: when to try again, or None.

    """

    def __init__(self, code: ErrorCode, sentence: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence
        self.retry_after_seconds = retry_after_seconds


class TransportError(HeronError):
    """The other side could not be reached or stopped answering; trying again may help."""


class Interrupted(HeronError):  # noqa: N818 - a request to stop is not an error
    """A signal asked this process to stop."""
