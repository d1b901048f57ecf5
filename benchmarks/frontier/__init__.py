"""The frontier: what throughput a limit of memory allows, ours with a plan made for it, beside other engines.

`planner` measures the machine once and plans for every budget; `cases` are those plans, and the peers' ways of saving
memory. `trials` says in which order: each is fresh processes, a `worker` that trains one case by one of `engines`.
`measured` is what comes of them; `results` is pure, `report` makes the tables, `picture` the picture.
"""
