"""Exit codes of all HERON commands: small, numbered, documented. Only `main` functions exit."""

from __future__ import annotations

from enum import IntEnum

from heron_common.errors import (
    ClockError,
    ConfigurationError,
    DataError,
    HeronError,
    ProgramError,
    RefusedError,
    SelfCheckError,
    StorageError,
    TransportError,
    UnsupportedError,
)


class ExitCode(IntEnum):
    """What a process says with its exit status."""

    OK = 0
    FAILURE = 1
    CONFIGURATION = 2
    DATA = 3
    REFUSED = 4
    UNREACHABLE = 5
    PROGRAM = 6
    STORAGE = 7
    UNSUPPORTED = 8
    NO_GO = 9
    CLOCK = 10
    FORCED = 130


EXIT_HELP: dict[ExitCode, str] = {
    ExitCode.OK: "finished, or stopped on request after a drain",
    ExitCode.FAILURE: "an unexpected error; the log has the traceback",
    ExitCode.CONFIGURATION: "an option, file or environment variable is wrong; restarting changes nothing",
    ExitCode.DATA: "the data is missing or not what the run expects; restarting changes nothing",
    ExitCode.REFUSED: "the server refused this client for good (version, name, revoked certificate); restarting changes nothing",
    ExitCode.UNREACHABLE: "the server could not be reached within --give-up-after-seconds, or the TLS handshake kept failing; a restart may help",
    ExitCode.PROGRAM: "a program cannot be built or run here; restarting changes nothing",
    ExitCode.STORAGE: "the disk is full or unreadable; the last good checkpoint is intact",
    ExitCode.UNSUPPORTED: "this processor or C library cannot run the libraries underneath; restarting changes nothing",
    ExitCode.NO_GO: "--self-check found that this device cannot take part; its page says why",
    ExitCode.CLOCK: "the clock says a time before the certificate's; a restart helps once the clock is set",
    ExitCode.FORCED: "a second signal forced the end",
}
"""Every code has help; a test compares the two."""

_BY_ERROR: tuple[tuple[type[HeronError], ExitCode], ...] = (
    # Before its parent: a device without a battery starts in the past and is to be started again, not given up.
    (ClockError, ExitCode.CLOCK),
    (ConfigurationError, ExitCode.CONFIGURATION),
    (DataError, ExitCode.DATA),
    (ProgramError, ExitCode.PROGRAM),
    (StorageError, ExitCode.STORAGE),
    (RefusedError, ExitCode.REFUSED),
    (TransportError, ExitCode.UNREACHABLE),
    (UnsupportedError, ExitCode.UNSUPPORTED),
    (SelfCheckError, ExitCode.NO_GO),
)


PERMANENT = (ExitCode.CONFIGURATION, ExitCode.DATA, ExitCode.REFUSED, ExitCode.PROGRAM, ExitCode.UNSUPPORTED, ExitCode.NO_GO)
"""Starting again changes nothing: for systemd's RestartPreventExitStatus and Kubernetes' podFailurePolicy."""


def exit_code_of(error: HeronError) -> ExitCode:
    """Return the exit code that an error ends a process with."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), ExitCode.FAILURE)


def exit_codes_help() -> str:
    """Return the table of exit codes in one paragraph, for --help."""
    return "Exit codes: " + "; ".join(f"{code.value} {text}" for code, text in EXIT_HELP.items()) + "."
