"""The OpenAI endpoint: text in, text out, and the journal of every live request.

May import: lamella_contract, transformers' tokenizers, zmq, starlette.
Refuses to know: torch, layers, KV pages.
"""
