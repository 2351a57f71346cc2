"""A module of the user's own: loaded, captured, cut, and proved to be the same model."""
