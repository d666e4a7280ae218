"""How each Kubernetes object looks: pure functions of a spec, a plan and settings to manifests.

May import: `views`, `revision`, `settings`, lamella_contract. Refuses to know: whether an object
exists, and what to do when it does not.
"""
