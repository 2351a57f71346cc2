"""The trained model as a whole, for use without HERON."""
