"""What this device can do before it takes part: its memory, its data, a trial of a round."""
