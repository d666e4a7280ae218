"""A stand-in for the worker: the same entry and /status, no torch, no model."""
