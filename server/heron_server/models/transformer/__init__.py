"""Transformers by name: their families, adapters, heads and losses."""
