"""Who belongs to the ring: the pure `ring`, and the control threads that carry out what it says.

May import: lamella_contract, ZeroMQ through `transport`. Refuses to know: tensors, scheduling.
"""
