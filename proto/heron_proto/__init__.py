"""Proto contracts of HERON: `heron_proto.v1`."""
