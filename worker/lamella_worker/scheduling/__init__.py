"""What every stage does next, decided on stage 0, and the tables that stages keep from headers.

May import: lamella_contract, numpy. Refuses to know: torch, ZeroMQ, clocks (time is an argument).
"""
