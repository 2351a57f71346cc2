"""Every place where a process may be killed by its tests, in one list; without the environment variable none of them does anything.

HERON_CRASH_AT=spool_written:3 kills the process with SIGKILL when it comes to that point for the third time, as a power cut would: nothing is
closed, nothing is flushed, nobody is told.
"""

from __future__ import annotations

import itertools
import os
import signal
from enum import StrEnum

CRASH_VARIABLE = "HERON_CRASH_AT"


class CrashPoint(StrEnum):
    """Where; names say what has just happened, or is about to."""

    # The server, by call.
    JOIN_RECEIVED = "join_received"
    JOIN_ANSWERED = "join_answered"
    BLOB_BEGUN = "blob_begun"
    ASSIGNMENT_ASKED = "assignment_asked"
    UPLOAD_ADMITTED = "upload_admitted"
    UPLOAD_CHUNK = "upload_chunk"
    UPLOAD_RECEIVED = "upload_received"
    UPLOAD_ACCEPTED = "upload_accepted"
    UPDATE_ADMITTED = "update_admitted"
    UPDATE_RECEIVED = "update_received"
    UPDATE_ACCEPTED = "update_accepted"
    LEAVE_RECEIVED = "leave_received"
    # The server's storage.
    SPOOL_WRITTEN = "spool_written"
    SPOOL_DURABLE = "spool_durable"
    LEDGER_COMMITTING = "ledger_committing"
    LEDGER_COMMITTED = "ledger_committed"
    CHECKPOINT_BEGUN = "checkpoint_begun"
    CHECKPOINT_WRITTEN = "checkpoint_written"
    CHECKPOINT_LISTED = "checkpoint_listed"
    CHECKPOINT_SETTLED = "checkpoint_settled"
    OPEN_ROUND_SAVED = "open_round_saved"
    SUMMARY_WRITTEN = "summary_written"
    # The server's rounds and trainer.
    ROUND_OPENED = "round_opened"
    ROUND_CLOSING = "round_closing"
    ROUND_ABANDONED = "round_abandoned"
    WENT_BACK = "went_back"
    STEP_TAKEN = "step_taken"
    STEP_RECORDED = "step_recorded"
    ROUND_AVERAGED = "round_averaged"
    ROUND_EVALUATED = "round_evaluated"
    # The client.
    CLIENT_JOINED = "client_joined"
    CLIENT_BLOB_PART = "client_blob_part"
    CLIENT_WEIGHTS_LOADED = "client_weights_loaded"
    CLIENT_STEP_BEGUN = "client_step_begun"
    CLIENT_CHUNK_SENT = "client_chunk_sent"
    CLIENT_UPLOAD_ANSWERED = "client_upload_answered"
    CLIENT_ROUND_COMPUTED = "client_round_computed"
    CLIENT_UPDATE_SENDING = "client_update_sending"
    CLIENT_UPDATE_ANSWERED = "client_update_answered"
    CLIENT_STATE_WRITTEN = "client_state_written"
    CLIENT_LEAVING = "client_leaving"


_hits = itertools.count(1)


def crash_point(point: CrashPoint) -> None:
    """Kill this process if its environment says so; called often, so it costs a look-up."""
    asked = os.environ.get(CRASH_VARIABLE)
    if asked is None:
        return
    name, _, count = asked.partition(":")
    if name != point:
        return
    if next(_hits) == int(count or 1):
        os.kill(os.getpid(), signal.SIGKILL)
