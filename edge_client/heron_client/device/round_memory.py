"""Whether a run fits into a device's memory: what this process took so far, measured, and what a round may add, counted."""

from __future__ import annotations

from heron_client.device.device_findings import Finding
from heron_client.network.memory_budget import round_memory
from heron_common.process.process_memory import available_memory, resident_memory
from heron_common.protocol.messages import Membership
from heron_common.terminal.figures import human_bytes


def memory_verdict(membership: Membership, window_bytes: int, limit_bytes: int | None) -> Finding:
    """Compare the most that a round may take with `limit_bytes`, or with what is free now; call when every program has run."""
    memory = resident_memory()
    added = round_memory(membership.plan, membership) + (window_bytes if membership.plan.sending_steps else 0) if membership.plan else 0
    needed = memory.peak_bytes + added
    # What is resident already is no longer free.
    most, what = (limit_bytes, "--memory-limit") if limit_bytes else (available_memory() + memory.resident_bytes, "what is free")
    sentence = f"{human_bytes(memory.peak_bytes)} at the peak of this check"
    sentence += (
        f" and at most {human_bytes(added)} more in a round"
        if membership.plan
        else ", and a round takes more, for the server does not tell its plan"
    )
    fits = needed <= most
    relation = "fit into" if fits else "do not fit into"
    remedy = (
        ""
        if fits
        else ": choose a smaller --window-bytes or a device with more memory, or have the server choose a smaller batch, cut or model"
    )
    return Finding("fit", f"{sentence}: {human_bytes(needed)} {relation} the {human_bytes(most)} of {what}{remedy}.", fits)
