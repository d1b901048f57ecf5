"""Small models with the shape of real ones, blocks in a list and a root around them; each has one peculiarity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """Norm, linear, activation, linear, residual; no size divides the others."""

    def __init__(self, width: int = 12, inner: int = 20) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(functional.gelu(self.up(self.norm(x))))
        return x + y


class DetachedBelow(Block):
    """Reads its weights once more without a gradient, below the use that has one."""

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.tanh(functional.linear(x, self.up.weight.detach()))
        return super().forward(functional.linear(inner, self.down.weight.detach()))


class Stack(nn.Module):
    """Input, three blocks, output."""

    def __init__(self, width: int = 12, inner: int = 20, make_block: Callable[..., nn.Module] = Block) -> None:
        super().__init__()
        self.first = nn.Linear(8, width)
        self.blocks = nn.ModuleList(make_block(width, inner) for _ in range(3))
        self.last = nn.Linear(width, 5)

    def run(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.run(self.first(x)))
        return torch.tanh(y)


class Tied(Stack):
    """The output has the input's weight, and the blocks have one norm in common."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(12, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.first.weight
        for block in self.blocks:
            block.norm = self.blocks[0].norm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(super().forward(x))
        return y


class Frozen(Stack):
    """One block is frozen as a whole, the others in part."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[1].requires_grad_(False)
        for block in self.blocks:
            block.up.requires_grad_(False)


class FrozenStart(Stack):
    """No gradient goes past the last block."""

    def __init__(self) -> None:
        super().__init__()
        self.first.requires_grad_(False)
        self.blocks[0].requires_grad_(False)
        self.blocks[1].requires_grad_(False)


def with_adapters() -> nn.Module:
    """LoRA by peft, dropout off."""
    import peft

    adapted: nn.Module = peft.get_peft_model(
        Stack(), peft.LoraConfig(target_modules=["up", "down"], r=3, lora_dropout=0.0, init_lora_weights=False)
    )
    return adapted


class Twice(Stack):
    """Every block is used twice, the first one also at the end."""

    def run(self, x: Tensor) -> Tensor:
        y: Tensor = super().run(super().run(x)) + self.blocks[0](x)
        return y


class Choosy(Stack):
    """``use`` says which blocks a forward goes through; one block and one linear are never used."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(12, 12)
        self.blocks.append(Block())

    def forward(self, x: Tensor, use: tuple[bool, ...] = (True,) * 3) -> Tensor:
        y = self.first(x)
        for block, used in zip(self.blocks, use, strict=False):
            y = block(y) if used else y
        z: Tensor = self.last(y)
        return z


class Experts(Block):
    """A block with three experts more, of which a forward takes those that it is told to."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__(width, inner)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, use: tuple[bool, ...] = ()) -> Tensor:
        y = super().forward(x)
        for expert, used in zip(self.experts, use, strict=False):
            y = y + expert(x) if used else y
        return y


class Routed(Stack):
    """Blocks with experts, of which ``use`` says which are taken."""

    def __init__(self) -> None:
        super().__init__(make_block=Experts)

    def forward(self, x: Tensor, use: tuple[bool, ...] = (True,) * 3) -> Tensor:
        y = self.first(x)
        for block in self.blocks:
            y = block(y, use)
        z: Tensor = self.last(y)
        return z


class InDict(Block):
    """Takes a dict or a tensor, gives a dict with a list in it."""

    def forward(self, x: Any) -> Any:
        return {"deep": [super().forward(x["deep"][0] if isinstance(x, dict) else x)], "name": "a string", "none": None}


class InTuple(Block):
    """Takes and gives two tensors, of which the second needs no gradient."""

    def forward(self, x: Any) -> Any:
        return super().forward(x[0] if isinstance(x, tuple) else x), torch.ones(2)


@dataclass
class Output:
    """What no pytree knows."""

    hidden: Tensor
    others: tuple[Tensor, ...] = ()


class InDataclass(Block):
    """Takes and gives a dataclass."""

    def forward(self, x: Any) -> Any:
        return Output(super().forward(x.hidden if isinstance(x, Output) else x))


class Nested(Stack):
    """Blocks that hand on something else than a tensor; so does the model."""

    def __init__(self, kind: type[Block]) -> None:
        super().__init__(make_block=kind)
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        last: Any = self.run(self.first(x))
        hidden = last["deep"][0] if self.kind is InDict else last[0] if self.kind is InTuple else last.hidden
        y = self.last(hidden)
        return {InDict: {"y": y}, InTuple: (y, hidden), InDataclass: Output(y, (hidden,))}[self.kind]


class Borrowing(Stack):
    """Blocks and the root read weights of blocks that are not running."""

    def run(self, x: Tensor) -> Tensor:
        blocks: list[Any] = list(self.blocks)
        for block, other in zip(blocks, (*blocks[1:], blocks[0]), strict=True):
            x = block(x) + functional.linear(x, other.down.weight @ other.up.weight)
        return functional.linear(x, blocks[1].up.weight.t() @ blocks[1].up.weight)


class Borrower(Block):
    """Reads a weight of another block in its own forward."""

    other: list[Block]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + functional.linear(x, self.other[0].down.weight @ self.other[0].up.weight)


class BorrowingInside(Stack):
    """Each block reads a weight of the next, which no list of its modules shows."""

    def __init__(self) -> None:
        super().__init__(make_block=Borrower)
        for block, other in zip(self.blocks, (*self.blocks[1:], self.blocks[0]), strict=True):
            object.__setattr__(block, "other", [other])


class Buffered(Stack):
    """Buffers, kept and not kept in the state dict, of which one is a transposed view."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            block.register_buffer("scale", torch.rand(12))
        self.register_buffer("mix", torch.rand(5, 5).t(), persistent=False)
        self.register_buffer("count", torch.randint(1, 9, ()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x) * block.scale
        y: Tensor = self.last(x) @ self.mix / self.count
        return y


class Recomputing(Stack):
    """Activation checkpointing of each block, and of two blocks at once."""

    def run(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


class RecomputingTogether(Stack):
    """Activation checkpointing around several blocks."""

    def run(self, x: Tensor) -> Tensor:
        x = checkpoint(lambda y: self.blocks[1](self.blocks[0](y)), x, use_reentrant=False)
        y: Tensor = self.blocks[2](x)
        return y


class RecomputingAll(Stack):
    """Activation checkpointing around all blocks: nothing else of the blocks is seen in the first forward."""

    def run(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(super().run, x, use_reentrant=False)
        return y


class Reentrant(Stack):
    """The old kind of activation checkpointing."""

    def run(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=True)
        return x


class Mixed(Stack):
    """Parameters of three dtypes in one block, of no dimension, of one element and of none."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            block.gain = nn.Parameter(torch.rand(()))
            block.shift = nn.Parameter(torch.rand(1, dtype=torch.float64))
            block.tilt = nn.Parameter(torch.rand(12, dtype=torch.bfloat16))
        self.nothing = nn.Parameter(torch.empty(0))

    def run(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) * block.gain + block.shift.float() + block.tilt.float()
        return x


class Sums(nn.Module):
    """Embeddings: whole rows of the gradient are zero, and on each rank others; the output is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 12)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, indices: Tensor) -> Tensor:
        x = self.table(indices)
        for block in self.blocks:
            x = block(x)
        mean: Tensor = x.square().mean()
        return mean
