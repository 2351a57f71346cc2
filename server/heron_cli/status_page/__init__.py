"""What `heron status` shows: a process's metrics, asked for directly, as a page for people."""
