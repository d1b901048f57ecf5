"""Sample from what a run has trained: ``python -m ciuic_dist.generate run=runs/NAME prompt="..." [key=value ...]``.

``tokens=200`` at most; ``temperature=1.0``, of which 0 takes the likeliest; ``seed=0``; ``checkpoint=FOLDER`` takes
another checkpoint than the run's newest. One process holds the whole model.

Exit codes: 0 the text is on stdout; 2 the settings are wrong, or the checkpoint is corrupt.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciuic_dist.loop.command import run_command

if TYPE_CHECKING:
    from ciuic_dist.loop.trained import Trained

_KNOWN = ("run", "prompt", "tokens", "temperature", "seed", "checkpoint")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the prompt in ``arguments`` (default: the command line's) and what follows; returns the exit code."""
    return run_command(_generate, __doc__, arguments)


def _generate(arguments: Sequence[str]) -> None:
    from ciuic_dist.config import ConfigError, assignments
    from ciuic_dist.loop.trained import trained

    given = assignments(arguments, _KNOWN)
    for key in ("run", "prompt"):
        if key not in given:
            raise ConfigError(f"no {key}: add {key}=...")
    try:
        tokens, seed = int(given.get("tokens", "200")), int(given.get("seed", "0"))
        temperature = float(given.get("temperature", "1.0"))
    except ValueError as error:
        raise ConfigError(f"tokens and seed are whole numbers, temperature is a number: {error}") from error
    if tokens < 1 or temperature < 0 or seed < 0:
        raise ConfigError("tokens must be at least 1, temperature and seed not negative")
    found = trained(Path(given["run"]), Path(given["checkpoint"]) if "checkpoint" in given else None)
    print(_sample(found, given["prompt"], tokens, temperature, seed))


def _sample(found: Trained, prompt: str, tokens: int, temperature: float, seed: int) -> str:
    """The prompt and at most ``tokens`` more, by transformers' own means."""
    import torch

    from ciuic_dist.comm.groups import device
    from ciuic_dist.config import ConfigError
    from ciuic_dist.loop.trained import filled
    from ciuic_dist.models.build import longest_sequence

    tokenizer = found.tokenizer
    ids = tokenizer.ids(prompt)
    longest = longest_sequence(found.config.model)
    if not ids:
        raise ConfigError("prompt= is empty: begin with at least one token")
    if longest is not None and len(ids) + tokens > longest:
        raise ConfigError(f"{len(ids)} tokens of prompt and {tokens} more are beyond the model's {longest} positions")
    model: Any = filled(found).to(device()).eval()
    given = torch.tensor([ids], device=device())
    torch.manual_seed(seed)
    made = model.generate(
        given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=tokens,
        **({"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}),
        use_cache=True,
        eos_token_id=tokenizer.end,
        pad_token_id=tokenizer.end or 0,
        suppress_tokens=list(range(tokenizer.vocab_size, model.config.get_text_config().vocab_size)) or None,
    )
    return tokenizer.decode(made[0].tolist())


if __name__ == "__main__":
    sys.exit(main())
