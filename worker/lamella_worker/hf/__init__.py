"""Slices of transformers' own models, for every family that the fast runner does not know.

May import: torch, transformers, lamella_checkpoint, `paging`, `batch`. Refuses to know: sockets,
scheduling, sampling.
"""
