"""Replayed values are the ones a plain construction gives, bit for bit, one parameter at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, UntypedStorage, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ciuic_dist.models.deferred import distinct_tensors, materialize, recipe_of, record
from ciuic_dist.models.recording import DeferredError
from ciuic_dist.models.replay import Program

SEED = 7
WIDTH = 64


class Initialised(nn.Module):
    """Initialisations of many kinds, in place, out of place, partial and overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.truncated = nn.Parameter(torch.empty(9, 31))
        nn.init.trunc_normal_(self.truncated, std=0.02)
        self.orthogonal = nn.Parameter(torch.empty(12, 20))
        nn.init.orthogonal_(self.orthogonal, gain=1.3)
        self.tall = nn.Parameter(torch.empty(20, 12))
        nn.init.orthogonal_(self.tall)
        self.kaiming = nn.Linear(17, 5)
        nn.init.kaiming_normal_(self.kaiming.weight)
        self.sparse = nn.Parameter(torch.empty(10, 6))
        nn.init.sparse_(self.sparse, sparsity=0.3)
        self.identity = nn.Parameter(nn.init.eye_(torch.empty(4, 4)))
        self.embedding = nn.Embedding(11, 3, padding_idx=2)
        self.uniform = nn.Parameter(torch.rand(3, 4).t())
        self.scaled = nn.Parameter(torch.randn(8, dtype=torch.float64).to(torch.bfloat16))
        self.transposed = nn.Parameter(torch.empty(5, 40))
        with torch.no_grad():
            self.transposed.t().normal_()
            self.transposed[1:3].uniform_(-1, 1)
            self.transposed.add_(torch.arange(40) / 7)
        self.convolution = nn.Conv2d(2, 3, 3)
        self.attention = nn.MultiheadAttention(8, 2)


class Buffered(nn.Module):
    """Buffers of every kind: literal, computed, on the CPU by name, non-persistent, drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        frequencies = 1.0 / (10.0 ** (torch.arange(0, 8, 2, dtype=torch.float) / 8))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.register_buffer("copied", frequencies.clone())
        self.register_buffer("literal", torch.tensor([[1, 2], [3, 4]]))
        self.register_buffer("scalar", torch.tensor(0.5))
        slopes = torch.linspace(0, 1, 5, device="cpu")
        assert slopes[-1].item() == 1.0
        self.register_buffer("slopes", slopes)
        self.register_buffer("mixed", slopes * torch.arange(5))
        slopes = slopes.clone()
        self.register_buffer("before", slopes + torch.arange(5))
        slopes.add_(1)
        self.register_buffer("changed", slopes)
        partly = torch.arange(5.0, device="cpu")
        partly[1:3].normal_()
        self.register_buffer("partly", partly)
        self.register_buffer("mask", torch.ones(6, 6).tril().bool())
        self.register_buffer("permutation", torch.randperm(13))
        self.register_buffer("noise", torch.randn(3, device="cpu") + 1)
        self.legacy = nn.Parameter(torch.Tensor(4, 5))
        nn.init.xavier_uniform_(self.legacy)
        self.after = nn.Linear(3, 3)


@torch.library.custom_op("ciuic_dist_tests::rows_last", mutates_args=())
def rows_last(tensor: Tensor) -> Tensor:
    return tensor.t().clone(memory_format=torch.preserve_format)


@rows_last.register_fake
def _(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape[::-1])  # another layout than the real one's


class Wary(nn.Module):
    """Looks at where its tensors are, and uses an operation whose meta kernel promises too much."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, 5))
        if self.weight.device.type != "meta" and not self.weight.is_meta:
            nn.init.normal_(self.weight)
        there = torch.rand(4, device=self.weight.device)
        self.register_buffer("there", there)
        self.register_buffer("moved", torch.ones(2, device="cpu").to(self.weight.device) * there[:2])
        self.register_buffer("turned", rows_last(self.weight.detach()).contiguous() * 2)
        self.register_buffer("like", self.weight.new_tensor([1.5, 2.5]))


class Tied(nn.Module):
    """One parameter under two names, two parameters on one storage, a frozen and a tagged one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Embedding(6, 4)
        self.outer = nn.Linear(4, 6, bias=False)
        self.outer.weight = self.inner.weight
        flat = torch.empty(10).normal_()
        self.first = nn.Parameter(flat[:4].view(2, 2))
        self.rest = nn.Parameter(flat[4:], requires_grad=False)
        self.first.tag = "kept"  # type: ignore[attr-defined]


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "initialised": Initialised,
    "buffered": Buffered,
    "wary": Wary,
    "tied": Tied,
    "lstm": lambda: nn.LSTM(5, 7, num_layers=2, bidirectional=True),
    "transformer": lambda: nn.TransformerEncoderLayer(8, 2, 16),
}


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every name, of tied tensors too."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def plain(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return make()


@pytest.mark.parametrize("name", MAKERS)
def test_values_are_those_of_a_plain_construction(name: str) -> None:
    module = materialize(record(MAKERS[name], SEED))
    expected = tensors(plain(MAKERS[name]))
    assert list(tensors(module)) == list(expected)
    for key, tensor in tensors(module).items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=0, equal_nan=False, check_stride=True)
        assert tensor.requires_grad == expected[key].requires_grad


def test_another_seed_gives_other_values() -> None:
    first, second = (materialize(record(Tied, seed)) for seed in (1, 2))
    assert not torch.equal(first.inner.weight, second.inner.weight)


def test_nothing_is_real_before_it_is_asked_for() -> None:
    module = record(Initialised, SEED)
    assert all(tensor.is_meta for tensor in distinct_tensors(module))
    assert recipe_of(module) is not None
    materialize(module)
    assert recipe_of(module) is None
    assert not any(tensor.is_meta for tensor in distinct_tensors(module))


def test_each_tensor_of_the_module_is_emitted_once_and_again_by_another_replay() -> None:
    module = record(Tied, SEED)
    recipe = recipe_of(module)
    assert recipe is not None
    for _ in range(2):
        emitted: dict[int, Tensor] = {}

        def emit(deferred: Tensor, real: Tensor, emitted: dict[int, Tensor] = emitted) -> None:
            assert id(deferred) not in emitted
            emitted[id(deferred)] = real

        recipe.replay(emit)
        assert emitted.keys() == {id(tensor) for tensor in distinct_tensors(module)}
        assert torch.equal(emitted[id(module.inner.weight)], plain(Tied).get_parameter("inner.weight"))


def test_emitted_tensors_are_the_receivers_own() -> None:
    module = record(Buffered, SEED)
    recipe = recipe_of(module)
    assert recipe is not None

    def spoil(_: Tensor, real: Tensor) -> None:
        real.zero_()

    recipe.replay(spoil)
    assert torch.equal(materialize(module).get_buffer("slopes"), plain(Buffered).get_buffer("slopes"))


def test_the_random_state_and_default_dtype_of_the_caller_are_kept() -> None:
    state = torch.get_rng_state()
    module = record(Buffered, SEED)
    assert torch.equal(torch.get_rng_state(), state)
    materialize(module)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32


def test_the_default_dtype_is_the_one_while_recording() -> None:
    def make() -> nn.Module:
        torch.set_default_dtype(torch.float64)
        try:
            module = nn.Linear(3, 2)
            module.register_buffer("ratio", torch.arange(4) / 3)
            return module
        finally:
            torch.set_default_dtype(torch.float32)

    module, expected = materialize(record(make, SEED)), plain(make)
    assert torch.equal(module.get_buffer("ratio"), expected.get_buffer("ratio"))
    assert torch.equal(module.get_parameter("weight"), expected.get_parameter("weight"))


def test_ties_aliases_attributes_and_flags_survive() -> None:
    module = materialize(record(Tied, SEED))
    assert module.outer.weight is module.inner.weight
    assert isinstance(module.first, nn.Parameter)
    assert vars(module.first)["tag"] == "kept"
    assert module.first.untyped_storage().data_ptr() == module.rest.untyped_storage().data_ptr()
    assert not module.rest.requires_grad


def test_buffers_stay_persistent_or_not() -> None:
    assert materialize(record(Buffered, SEED)).state_dict().keys() == plain(Buffered).state_dict().keys()


def test_a_recurrent_module_computes_with_the_new_weights() -> None:
    module, expected = materialize(record(MAKERS["lstm"], SEED)), plain(MAKERS["lstm"])
    inputs = torch.ones(2, 3, 5)
    assert torch.equal(module(inputs)[0], expected(inputs)[0])


def test_a_dtype_changed_on_meta_is_kept() -> None:
    module = materialize(record(Tied, SEED).bfloat16())
    assert torch.equal(module.inner.weight, plain(Tied).bfloat16().get_parameter("inner.weight"))


def test_a_real_module_is_left_alone() -> None:
    module = nn.Linear(2, 2)
    weight = module.weight
    assert materialize(module).weight is weight


class LiveBytes(TorchDispatchMode):
    """The most bytes of CPU storages alive at once, looked at after each operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        result = func(*args, **kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and not leaf.is_meta:
                storage: UntypedStorage = leaf.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(nbytes for _, nbytes in self._alive.values()))
        return result


def test_replay_holds_one_parameter_at_a_time() -> None:
    def make() -> nn.Module:
        stack = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(10)))
        for parameter in stack.parameters():  # as post_init does: all of them again, at the end
            nn.init.normal_(parameter)
        return stack

    recipe = recipe_of(record(make, SEED))
    assert recipe is not None
    with LiveBytes() as plainly:
        make()
    with LiveBytes() as replayed:
        recipe.replay(lambda *_: None)
    one = WIDTH * WIDTH * 4
    assert plainly.peak >= 10 * one  # the meter does count
    assert one <= replayed.peak <= one + WIDTH * 4


def test_a_recipe_goes_with_its_module() -> None:
    module = record(lambda: nn.Linear(2, 2), SEED)
    recipe = weakref.ref(recipe_of(module))
    del module
    gc.collect()
    assert recipe() is None


def reads_a_value() -> nn.Module:
    return nn.Linear(int(torch.linspace(1, 3, 3).sum().item()), 2)


def reads_a_drawn_value() -> nn.Module:
    return nn.Linear(int(torch.randint(1, 4, (), device="cpu").item()), 2)


def draws_from_its_own_generator() -> nn.Module:
    module = nn.Linear(2, 2)
    nn.init.normal_(module.weight, generator=torch.Generator())
    return module


def takes_a_parameter_from_outside() -> nn.Module:
    module = nn.Linear(2, 2)
    module.weight = FOREIGN
    return module


FOREIGN = nn.Parameter(torch.empty(2, 2, device="meta"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (reads_a_value, "reads a value that doesn't exist yet"),
        (reads_a_drawn_value, "reads a value that doesn't exist yet"),
        (draws_from_its_own_generator, "generator of its own"),
        (takes_a_parameter_from_outside, r"shape \(2, 2\) was made outside"),
    ],
)
def test_what_cannot_be_deferred_is_refused(make: Callable[[], nn.Module], message: str) -> None:
    state = torch.get_rng_state()
    with pytest.raises(DeferredError, match=f"(?i){message}"):
        record(make, SEED)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_meta_module_without_a_recipe_is_refused() -> None:
    with pytest.raises(DeferredError, match="weight is on meta"):
        materialize(nn.Linear(2, 2, device="meta"))


def test_a_part_of_a_recipe_gives_the_values_that_it_has_in_the_whole() -> None:
    module = record(MAKERS["lstm"], SEED)
    recipe = recipe_of(module)
    assert isinstance(recipe, Program)
    names = {id(tensor): name for name, tensor in module.named_parameters()}
    last = list(module.parameters())[-1]
    emitted: dict[str, Tensor] = {}
    recipe.only([last]).replay(lambda deferred, real: emitted.update({names[id(deferred)]: real}))
    assert list(emitted) == [names[id(last)]]
    assert torch.equal(emitted[names[id(last)]], dict(plain(MAKERS["lstm"]).named_parameters())[names[id(last)]])


def test_nothing_is_drawn_for_what_is_not_random() -> None:
    def make() -> nn.Module:
        module = nn.Linear(WIDTH, WIDTH)
        module.register_buffer("ratio", torch.arange(4) / 3)
        return module

    module = record(make, SEED)
    recipe = recipe_of(module)
    assert isinstance(recipe, Program)
    with LiveBytes() as live:
        recipe.only([module.get_buffer("ratio")]).replay(lambda *_: None)
    assert 0 < live.peak < WIDTH * WIDTH
