"""The process: watches that wake, a queue, a lease, probes, metrics, and starting again.

May import: everything of this package; kopf is imported in one module only. Refuses to know: what a
reconcile does.
"""
