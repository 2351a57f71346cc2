"""The model families that a run may name, from digits to a module of the user's own, in one registry."""
