"""Operators as they take in training."""

from __future__ import annotations

import torch

from ciuic_dist.estimate.calls import Call
from ciuic_dist.estimate.observe import Observer


def test_every_call_of_forward_and_backward_is_seen() -> None:
    weight = torch.ones(4, 4, requires_grad=True)
    with Observer() as observer:
        (torch.ones(2, 4) @ weight @ weight).sum().backward()
    torch.ones(8, 8) @ torch.ones(8, 8)
    seen = observer.seen()
    product = str(Call.of(torch.ops.aten.mm.default, (torch.ones(2, 4), torch.ones(4, 4)), {}))
    assert seen[product][1] == 2
    assert all(seconds > 0 and count > 0 for seconds, count in seen.values())
    products = [count for text, (_, count) in seen.items() if text.startswith("aten.mm.default")]
    assert sum(products) == 2 + 3, "the input needs no gradient"
