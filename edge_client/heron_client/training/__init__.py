"""A round on the device: programs and their buffers, passes, steps."""
