"""``python ends.py HOW TIMES``: TIMES times two ranks that train a step and end as any script does.

HOW: ``destroy`` their group, or just ``return``.
``save``: with a checkpoint in the making, in the folder ``checkpoint``; ``fail``: with an exception behind that.

The ranks are forks of this process, which has imported everything, and they leave through the end of this file: what
the interpreter does at its end, it does. Prints their exit codes.
"""

from __future__ import annotations

import os
import socket
import sys

import torch
import torch.distributed as dist
from torch import nn

import ciuic_dist as cd


def train_a_step(how: str) -> None:
    # Other threads get the interpreter's lock only where this one waits: what they still have to do when this
    # one is through, they come to as the interpreter ends.
    sys.setswitchinterval(60)
    cd.init(timeout=60)
    width = 1200 if how in ("save", "fail") else 8  # so that the checkpoint takes longer than the rest
    model = cd.shard(nn.Sequential(nn.Linear(width, width), nn.Linear(width, width)))
    optimizer = cd.AdamW(model.parameters())
    model(torch.ones(2, width)).sum().backward()
    optimizer.step()
    cd.full_state_dict(model)
    if how in ("save", "fail"):
        cd.save("checkpoint", model=model, optimizer=optimizer, wait=False)
    if how == "fail":
        raise RuntimeError("on purpose")
    if how == "destroy":
        dist.destroy_process_group()


def fork_ranks() -> list[int]:
    """The ranks' process ids; none in a rank."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    os.environ.update(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = []
    for rank in range(2):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        process = os.fork()
        if not process:
            return []
        ranks.append(process)
    return ranks


def main(how: str, times: str) -> None:
    torch.set_num_threads(1)
    torch.optim.AdamW([nn.Parameter(torch.zeros(1))])  # imports what it needs
    for _ in range(int(times)):
        ranks = fork_ranks()
        if not ranks:
            train_a_step(how)
            return
        print(*(os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
