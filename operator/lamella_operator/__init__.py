"""The operator: ShardedModels in, pods and their status out.

May import: lamella_contract, kopf and kubernetes (behind one module each). Refuses to know: torch,
tokens, and how the data plane works inside; it reads what stage 0 says of itself and nothing else.

`running` wakes `reconciling` with a key; one reconcile is observe -> decide (pure) -> act, from
what is seen now. `deciding` says what to do, `desired` how each object looks, `status` what to
tell the user. Nothing is remembered in the process that could not be read again.
"""
