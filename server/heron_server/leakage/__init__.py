"""What activations give away: attacks that turn them back into samples, and what comes of them beside what a guess without activations gets."""
