"""Files that last and files that may be a stranger's: atomic writes, locks, bounded reading, a device's certificates."""
