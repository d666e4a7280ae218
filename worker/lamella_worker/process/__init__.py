"""Processes: the parent that forks stages, one stage from fork to exit, and what it says of itself.

May import: everything of this package. Refuses to know: what a step computes.
"""
