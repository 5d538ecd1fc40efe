"""All watches of a client over one stream, as a state machine without I/O."""
