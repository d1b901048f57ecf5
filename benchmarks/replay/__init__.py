"""Steps of real models played against spilling policies on a simulated machine, beside a lower bound.

`models` profiles them with fake tensors, `cases` says which, `peers` has the classic policies, `report` draws.
"""
