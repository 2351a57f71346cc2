"""The tables of the ledger, and the statements that write them."""

from __future__ import annotations

SCHEMA_VERSION = 2

SCHEMA = """
CREATE TABLE run (run_id TEXT NOT NULL, schema_version INTEGER NOT NULL);
CREATE TABLE attempts (
    round_index INTEGER NOT NULL, attempt INTEGER NOT NULL,
    cohort TEXT NOT NULL,            -- JSON object: client name -> digest of its identity key
    inputs_sha256 TEXT NOT NULL,     -- of the plan, the weights and the scales that the attempt starts from
    outcome TEXT NOT NULL,           -- open, closing, closed, abandoned
    submitted TEXT,                  -- JSON list of names, once it is closing
    reason TEXT,                     -- why it was abandoned
    settled INTEGER NOT NULL DEFAULT 0,
    accepted INTEGER NOT NULL DEFAULT 0, trained INTEGER NOT NULL DEFAULT 0, scored INTEGER NOT NULL DEFAULT 0,
    rejected INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (round_index, attempt)
);
CREATE TABLE uploads (
    round_index INTEGER NOT NULL, attempt INTEGER NOT NULL, client_id TEXT NOT NULL, purpose TEXT NOT NULL, local_step INTEGER NOT NULL,
    sequence INTEGER NOT NULL,       -- order of acceptance
    sha256 TEXT NOT NULL,
    length INTEGER NOT NULL,         -- of its texts, 0 where a run has one shape
    file TEXT, size_bytes INTEGER NOT NULL,
    state TEXT NOT NULL,             -- accepted, trained, scored, rejected
    position INTEGER,                -- order of training within the attempt
    answer TEXT,                     -- JSON: server version, loss, losses of probes
    gradient_file TEXT, gradient_bytes INTEGER,
    PRIMARY KEY (round_index, attempt, client_id, purpose, local_step)
);
CREATE TABLE updates (
    round_index INTEGER NOT NULL, attempt INTEGER NOT NULL, client_id TEXT NOT NULL,
    sha256 TEXT NOT NULL, file TEXT, size_bytes INTEGER NOT NULL, statistics TEXT NOT NULL, log BLOB,
    PRIMARY KEY (round_index, attempt, client_id)
);
CREATE TABLE drops (round_index INTEGER NOT NULL, attempt INTEGER NOT NULL, client_id TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE rejections (
    round_index INTEGER NOT NULL, attempt INTEGER NOT NULL, client_id TEXT NOT NULL, purpose TEXT NOT NULL, local_step INTEGER NOT NULL,
    reason TEXT NOT NULL
);
CREATE TABLE clients (client_id TEXT PRIMARY KEY, identity_sha256 TEXT NOT NULL, present INTEGER NOT NULL);
CREATE TABLE quarantines (client_id TEXT PRIMARY KEY, round_index INTEGER NOT NULL, reason TEXT NOT NULL);
"""

DIGESTS = """
CREATE TABLE IF NOT EXISTS digests (  -- of files in the spool that are not what a client sent: gradients, and weights that a log arrived at
    round_index INTEGER NOT NULL, attempt INTEGER NOT NULL, file TEXT PRIMARY KEY, sha256 TEXT NOT NULL
);
"""
"""Ledgers of version 0.1 have no such table, and get one."""

COLUMNS = "CREATE TABLE IF NOT EXISTS columns (place INTEGER PRIMARY KEY, name TEXT NOT NULL)  -- of a sample's numbers, as the first client named them"
"""Nor this one."""

_KEY = "round_index = ? AND attempt = ?"
_UPLOAD = f"{_KEY} AND client_id = ? AND purpose = ? AND local_step = ?"

OPEN = "INSERT INTO attempts (round_index, attempt, cohort, inputs_sha256, outcome) VALUES (?, ?, ?, ?, 'open')"
CLOSE = f"UPDATE attempts SET outcome = 'closing', submitted = ? WHERE {_KEY}"
ABANDON = f"UPDATE attempts SET outcome = 'abandoned', reason = ? WHERE {_KEY}"
DROP = "INSERT INTO drops VALUES (?, ?, ?, ?)"
ACCEPT_UPLOAD = (
    "INSERT INTO uploads (round_index, attempt, client_id, purpose, local_step, sequence, sha256, length, file, size_bytes, state) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'accepted')"
)
TRAIN_UPLOAD = f"UPDATE uploads SET state = 'trained', position = ?, answer = ?, gradient_file = ?, gradient_bytes = ? WHERE {_UPLOAD}"
SCORE_UPLOAD = f"UPDATE uploads SET state = 'scored', position = ? WHERE {_UPLOAD}"
REJECT_UPLOAD = f"UPDATE uploads SET state = 'rejected', position = ? WHERE {_UPLOAD}"
FORGET_REJECTION = f"DELETE FROM rejections WHERE {_UPLOAD}"
NOTE_REJECTION = "INSERT INTO rejections VALUES (?, ?, ?, ?, ?, ?)"
_BEYOND = f"{_KEY} AND position >= ?"
FORGET_REJECTIONS = (
    "DELETE FROM rejections WHERE (round_index, attempt, client_id, purpose, local_step) IN "
    f"(SELECT round_index, attempt, client_id, purpose, local_step FROM uploads WHERE {_BEYOND})"
)
WAIT_AGAIN = f"UPDATE uploads SET state = 'accepted', position = NULL WHERE {_BEYOND}"
FORGET_COVERED = f"UPDATE uploads SET file = NULL WHERE {_KEY} AND position < ?"
FORGET_PAYLOAD = f"UPDATE uploads SET file = NULL WHERE {_UPLOAD}"
FORGET_GRADIENT = f"UPDATE uploads SET gradient_file = NULL WHERE {_UPLOAD}"
ACCEPT_UPDATE = "INSERT INTO updates VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
NOTE_DIGEST = "INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?)"
JOIN = "INSERT OR REPLACE INTO clients VALUES (?, ?, 1)"
DEPART = "UPDATE clients SET present = 0 WHERE client_id = ?"
LEARN_COLUMN = "INSERT INTO columns VALUES (?, ?)"
QUARANTINE = "INSERT OR REPLACE INTO quarantines VALUES (?, ?, ?)"

_COUNT = f"(SELECT count(*) FROM uploads WHERE {_KEY}"
SETTLE_CLOSED = (
    f"UPDATE attempts SET outcome = 'closed', settled = 1, accepted = {_COUNT}), trained = {_COUNT} AND state = 'trained'), "
    f"scored = {_COUNT} AND state = 'scored'), rejected = {_COUNT} AND state = 'rejected') WHERE {_KEY} AND settled = 0"
)
SETTLE_ABANDONED = f"UPDATE attempts SET outcome = 'abandoned', reason = ?, settled = 1, accepted = {_COUNT}), rejected = {_COUNT}) WHERE {_KEY} AND settled = 0"
CLEAR = tuple(f"DELETE FROM {table} WHERE {_KEY}" for table in ("uploads", "updates", "digests"))
"""Drops stay: they are few, and an operator asks for them weeks later."""

COLUMNS_LEARNT = "SELECT name FROM columns ORDER BY place"

ABANDONED = "SELECT reason, count(*) FROM attempts WHERE outcome = 'abandoned' GROUP BY reason ORDER BY reason"
