"""Training within a budget of memory: how quick, against what the drive allows, and beside other engines.

`__main__` runs the `parts` that are asked for. Each trial is fresh processes: a `worker` trains one `case` by one of
`engines`, `prelude` measures what interpreter and libraries take, `rates` what drive and memory can do. `cgroup` sets a
limit that the kernel enforces. `results`, `bound` and `search` are pure, `report` makes the tables.
"""
