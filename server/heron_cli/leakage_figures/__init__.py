"""What `heron leakage` found, in sentences and as a picture."""
