"""What a model's files say, with no tensor computed: sources, headers, slices, profiles.

May import: lamella_contract, huggingface_hub, transformers' config classes, numpy.
Refuses to know: torch, ZeroMQ, Kubernetes, requests.
"""
