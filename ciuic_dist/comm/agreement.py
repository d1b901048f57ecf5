"""Ranks compare what they are about to do, so that a difference is an error and never a hang."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ciuic_dist.comm.errors import Disagreement
from ciuic_dist.comm.groups import gather_objects, rank


def agree(subject: str, description: Any) -> None:
    """Return if ``description`` (anything JSON can hold) is the same on every rank.

    Raises Disagreement on every rank, naming the first difference and the ranks.
    """
    text = json.dumps(description, sort_keys=True)
    digests = gather_objects(hashlib.sha256(text.encode()).hexdigest())
    odd = next((other for other, digest in enumerate(digests) if digest != digests[0]), None)
    if odd is None:
        return
    texts = gather_objects(text if rank() in (0, odd) else "")
    where, here, there = first_difference(json.loads(texts[0]), json.loads(texts[odd]))
    raise Disagreement(
        f"ranks 0 and {odd} have a different {subject}: {where or 'the whole'} is {here!r} on rank 0 and {there!r} "
        f"on rank {odd}; start every rank with the same code, settings and model"
    )


def first_difference(left: Any, right: Any, path: str = "") -> tuple[str, Any, Any]:
    """Where two JSON values first differ: (path, left's part, right's part).

    >>> first_difference({"a": [1, 2]}, {"a": [1, 3]})
    ('a[1]', 2, 3)
    """
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted({*left, *right}):
            if left.get(key) != right.get(key) or (key in left) != (key in right):
                inner = f"{path}.{key}" if path else str(key)
                if key not in left or key not in right:
                    return inner, left.get(key, "absent"), right.get(key, "absent")
                return first_difference(left[key], right[key], inner)
    if isinstance(left, list) and isinstance(right, list):
        for index, (a, b) in enumerate(zip(left, right, strict=False)):
            if a != b:
                return first_difference(a, b, f"{path}[{index}]")
        if len(left) != len(right):
            return f"the length of {path or 'the list'}", len(left), len(right)
    return path, left, right
