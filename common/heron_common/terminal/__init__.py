"""What people give on a command line and read on a screen or in a log."""
