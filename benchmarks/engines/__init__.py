"""Our engine beside plain PyTorch, DDP, FSDP2 and DeepSpeed: the same training under each, run in turns.

`__main__` runs repetitions of fresh processes (`launch` on `hosts`), each of which is a `worker` that trains by one
of `engines`; `report` makes medians, ratios and the table of what they measured. Only the workers import torch.
"""
