"""Rounds: who takes part, when a round opens and ends, which uploads and updates count, how they are averaged."""
