"""The network's edge of the server: gRPC in, domain calls out, errors as sentences."""
