"""The words that every piece of Lamella shares: names, spec, profile, plan, config, wire, errors.

May import: the standard library. Refuses to know: torch, kopf, ZeroMQ, HTTP, any process.
"""
