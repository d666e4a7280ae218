"""A stand-in for the gateway: the same entry, port and /health, no tokenizer."""
