"""The one place that says which release this is and which wire protocol it speaks."""

from __future__ import annotations

VERSION = "0.1.0"

PROTOCOL_VERSION = 8
"""Raised when an old client could misread a new server, or the other way round. Join refuses a mismatch."""
