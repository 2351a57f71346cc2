"""`heron simulate`: a server and its clients in one process."""
