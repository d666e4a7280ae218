"""One reconcile: observe, decide, act, tell; and the clients that it needs.

May import: the pure parts, kubernetes.aio, aiohttp, cryptography. Refuses to know: why it was
woken.
"""
