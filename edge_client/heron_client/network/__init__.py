"""Everything that crosses the network: calls and retries, uploads, downloads, and checks of what a server says."""
