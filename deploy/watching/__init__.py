"""Watching a run: the catalogue of metrics, the dashboard and the alert rules that are made from it, and what `heron status` shows."""
