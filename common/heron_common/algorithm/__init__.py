"""What a client does in a round, as frozen values: plans, their presets, what is refused, what they cost."""
