"""The server's own learning: one thread, one model, uploads in a settled order."""
