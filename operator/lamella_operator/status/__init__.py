"""What the user is told: conditions, numbers, one line that says why, and events.

May import: `views`, `actions`, lamella_contract. Refuses to know: how anything is decided.
"""
