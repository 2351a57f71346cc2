"""Where `heron leakage` keeps the figures of a run's own cut, and `heron report` looks for them."""

KEPT_AS = "leakage.json"
"""In the run's directory."""
