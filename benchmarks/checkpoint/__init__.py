"""Checkpoints of one training, ours beside torch.save, torch.distributed.checkpoint and DeepSpeed.

`__main__` measures what the drive can do (`drive`), then runs each way in processes of its own: a `worker` trains,
saves and loads by one of `ways`; `results` makes medians and fractions of the drive's rates, `report` the tables.
Only the workers train.
"""
