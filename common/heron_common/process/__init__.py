"""A process and its machine: clock, signals, addresses, memory, the metrics' port."""
