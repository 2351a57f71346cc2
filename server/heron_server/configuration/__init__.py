"""What an operator may set: options, their sections, and all mistakes at once."""
