"""Keys and values in pages, and attention over them.

May import: torch, lamella_contract, `batch`. Refuses to know: models, sockets, scheduling.
"""
