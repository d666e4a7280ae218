"""One stage of a pipeline: its layers, its KV pages, its sockets; on stage 0 the scheduler too.

May import: lamella_contract, lamella_checkpoint, torch, transformers, zmq.
Refuses to know: Kubernetes, HTTP clients, text.
"""
