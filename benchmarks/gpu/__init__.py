"""One GPU: its links, trainings larger than its memory, and how well plans predict it.

`__main__` runs the `parts` that are asked for within a number of minutes. Each trial is a process of its own that
`begin`s: `facts` says what the device is, `links` measures what copies to it and updates beside it take, `train` trains
one of the `trials` by one of the `engines`, and `benchmarks.plan.worker` predicts and trains the `cases`. `report`
makes the tables.
"""
