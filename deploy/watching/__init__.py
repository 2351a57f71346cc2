"""Watching a run: the catalogue of metrics, and the dashboard and the alert rules that are made from it."""
