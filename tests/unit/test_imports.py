"""``import ciuic_dist`` is for library users: it stays quick and has no effects."""

from __future__ import annotations

import subprocess
import sys

OPTIONAL = (
    "deepspeed",
    "hydra",
    "matplotlib",
    "omegaconf",
    "peft",
    "pyarrow",
    "rich",
    "timm",
    "tokenizers",
    "transformers",
    "xxhash",
)
PROBE = """
import sys, threading
import ciuic_dist
import torch
print(*sorted({name.partition(".")[0] for name in sys.modules}))
assert not torch.distributed.is_initialized(), "a process group was made"
assert not torch.cuda.is_initialized(), "CUDA was initialised"
assert threading.active_count() == 1, threading.enumerate()
"""


def test_importing_the_library_imports_no_optional_package_and_starts_nothing() -> None:
    probe = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:ciuic_dist", "-c", PROBE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert probe.returncode == 0, probe.stderr
    assert not set(OPTIONAL) & set(probe.stdout.split())


def test_public_names_are_the_documented_ones() -> None:
    import ciuic_dist

    documented = {
        "AdamW",
        "Memory",
        "clip_grad_norm_",
        "full_state_dict",
        "init",
        "load",
        "no_sync",
        "paged",
        "plan",
        "save",
        "shard",
        "status",
    }
    assert set(ciuic_dist.__all__) == documented
    assert all(hasattr(ciuic_dist, name) for name in documented)
