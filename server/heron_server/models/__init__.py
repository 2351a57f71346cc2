"""Models that can be split: what a split model is, the families that ship, and their registry."""
