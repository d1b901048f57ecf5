"""The engines, as their users set them up where memory is short; plain PyTorch and DDP as in benchmarks.engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

import ciuic_dist as cd
from benchmarks.engines.engines import ddp, plain, torch_adamw, training_loop
from benchmarks.measure.loop import Batch, Step
from benchmarks.measure.setting import Setting
from benchmarks.spill.case import Case
from benchmarks.spill.prelude import import_deepspeed, with_checkpointing
from ciuic_dist.models.deferred import materialize, recipe_of

_NVME_PER_PARAMETER: Final = 24  # bytes: weights, state and gradients take 16 in fp32, pages are not all full
_NVME_LEAST: Final = 256 << 20


def make(model: nn.Module, case: Case, setting: Setting) -> Step:
    """Spread ``model`` (it is deferred) as the case wants; one step of it."""
    return _MAKERS[case.engine](model, case, setting)


def _plain(model: nn.Module, case: Case, setting: Setting) -> Step:
    return plain(model, setting)


def _ddp(model: nn.Module, case: Case, setting: Setting) -> Step:
    return ddp(model, setting)


def _ours(model: nn.Module, case: Case, setting: Setting) -> Step:
    count = sum(parameter.numel() for parameter in model.parameters())
    nvme = f"{case.folder}:{_NVME_LEAST + _NVME_PER_PARAMETER * count}"
    memory = None if case.device is None else cd.Memory(device=case.device, nvme=nvme)
    model = cd.shard(model, memory=memory)
    return training_loop(model, adamw_in_backward(model, setting))


def adamw_in_backward(model: nn.Module, setting: Setting) -> cd.AdamW:
    """Ours, which updates a parameter as soon as its gradient is there."""
    return cd.AdamW(
        model.parameters(),
        lr=setting.learning_rate,
        betas=setting.betas,
        weight_decay=setting.weight_decay,
        in_backward=True,
    )


def _fsdp2(model: nn.Module, case: Case, setting: Setting) -> Step:
    return fsdp2(model, setting)


def fsdp2(model: nn.Module, setting: Setting, **options: Any) -> Step:
    """Sharded while on meta, then filled a parameter at a time: no rank ever has the whole.

    ``options``: of fully_shard.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    recipe = recipe_of(model)
    assert recipe is not None
    places = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    mesh = init_device_mesh("cpu", (setting.ranks,))
    for layer in model.get_submodule("model.layers").children():
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    model.to_empty(device="cpu")
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    recipe.replay(lambda deferred, real: _fill(tensors[places[id(deferred)]], real))
    return training_loop(model, torch_adamw(model, setting))


@torch.no_grad()
def _fill(tensor: Tensor, real: Tensor) -> None:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(tensor, DTensor):  # every rank has the value: none needs another's
        real = distribute_tensor(real, tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(real)


def deepspeed_offloading(model: nn.Module, case: Case, setting: Setting) -> Step:
    """ZeRO-3 with parameters and optimizer on the CPU or on NVMe."""
    deepspeed = import_deepspeed()
    largest = max(parameter.numel() for parameter in model.parameters())
    settings = _deepspeed_settings(case, setting, largest)
    if case.partitioned:
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
        with deepspeed.zero.Init(config_dict_or_path=settings):
            model = _rebuilt(model)
    else:
        materialize(model)
    return deepspeed_step(model, setting, settings)


def deepspeed_step(model: nn.Module, setting: Setting, settings: dict[str, Any]) -> Step:
    """Under DeepSpeed, which has been told its accelerator, as ``settings`` say, with its Adam on the CPU."""
    import deepspeed
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    optimizer = DeepSpeedCPUAdam(
        model.parameters(),
        lr=setting.learning_rate,
        betas=setting.betas,
        weight_decay=setting.weight_decay,
        adamw_mode=True,
    )
    engine: Any = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)[0]

    def step(batch: Batch) -> Tensor:
        loss: Tensor = engine(**batch).loss
        engine.backward(loss)
        engine.step()
        return loss.detach()

    return step


def _rebuilt(model: Any) -> nn.Module:
    made: nn.Module = type(model)(model.config)
    return with_checkpointing(made).train() if model.is_gradient_checkpointing else made.train()


def _deepspeed_settings(case: Case, setting: Setting, largest: int) -> dict[str, Any]:
    """Buffers as small as the largest parameter allows: what DeepSpeed needs is to be compared, not its defaults."""
    nvme = case.engine == "deepspeed-nvme"
    place = {"pin_memory": False, "device": "nvme" if nvme else "cpu"} | ({"nvme_path": case.folder} if nvme else {})
    buffers = {"buffer_count": 5, "buffer_size": largest} if nvme else {}
    return {
        "train_micro_batch_size_per_gpu": setting.batch // dist.get_world_size(),
        "gradient_clipping": 0.0,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
            "sub_group_size": max(largest, _SMALL_GROUP),
            "offload_param": place | buffers,
            "offload_optimizer": place | ({"buffer_count": 4} if nvme else {}),
        },
        "aio": {"block_size": 1 << 20, "queue_depth": 16, "single_submit": False, "overlap_events": True},
    }


_SMALL_GROUP: Final = 20_000_000  # elements: 80 MB of fp32

_MAKERS: Final[dict[str, Callable[[nn.Module, Case, Setting], Step]]] = {
    "ours": _ours,
    "plain": _plain,
    "ddp": _ddp,
    "fsdp2": _fsdp2,
    "deepspeed-cpu": deepspeed_offloading,
    "deepspeed-nvme": deepspeed_offloading,
}
