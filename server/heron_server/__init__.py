"""The server: compiles programs, trains the back of the model, runs rounds, averages clients' weights."""
