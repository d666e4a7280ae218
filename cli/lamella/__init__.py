"""The `lamella` command: serve, plan, chat, bench, status, as a user sees them.

May import: lamella_contract, lamella_checkpoint. Runs worker and gateway as subprocesses only.
Refuses to know: torch, sockets between stages.
"""
