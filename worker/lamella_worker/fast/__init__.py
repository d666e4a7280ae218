"""The hand-written decoder for the common dense families.

May import: torch, lamella_contract, `paging`, `batch`. Refuses to know: transformers' models
(importing them takes seconds); of a configuration it reads attributes only.
"""
