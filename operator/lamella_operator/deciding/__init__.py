"""What to do next, from what is seen now: pure functions of views to actions and a situation.

May import: `views`, `actions`, `reasons`, `revision`, `desired`, `settings`, lamella_contract.
Refuses to know: clients, clocks (time is in the observation), the process's past. `decide.decide`
is the way in, and lists the steps.
"""
