"""A stand-in for the gateway: the same entry, port and /readyz, no tokenizer."""
