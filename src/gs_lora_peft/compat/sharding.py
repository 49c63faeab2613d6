"""The frozen weights of a model, sharded by FSDP2: who asks for it, how it is done, and how single tensors are read.

Only the base model is sharded. What trains is whole in every process: an adapter is small, and its gradient is
averaged in one call. All functions that gather must be called by every process.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidInputError

_SWITCH = "ACCELERATE_USE_FSDP"  # set by `accelerate launch`
_FIX = "Take examples/accelerate/fsdp2.yaml: accelerate launch --config_file examples/accelerate/fsdp2.yaml ..."


def sharding_asked() -> bool:
    """Whether `accelerate launch` was told to use FSDP."""
    return os.environ.get(_SWITCH, "false").lower() == "true"


@contextmanager
def own_sharding() -> Iterator[None]:
    """Keeps accelerate from sharding, for the time of the block in which an `Accelerator` is made.

    accelerate would shard the adapter together with the base, and does not shard at all on CPUs.
    """
    before = os.environ.pop(_SWITCH, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[_SWITCH] = before


def sharding_settings() -> Any:
    """Returns the settings of FSDP that `accelerate launch` has put into the environment.

    Returns:
        `accelerate.FullyShardedDataParallelPlugin`: The settings.

    Raises:
        InvalidInputError: If they ask for FSDP 1, or for something that is not supported.
    """
    from accelerate import FullyShardedDataParallelPlugin

    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise InvalidInputError("fsdp_version", version, "2: FSDP 1 flattens matrices into one vector", _FIX)
    plugin = FullyShardedDataParallelPlugin()
    for name, why in (
        ("cpu_ram_efficient_loading", "every process reads the base model, whose fingerprint is checked"),
        ("cpu_offload", "the adapter stays on the device"),
        ("activation_checkpointing", "use `gradient_checkpointing` of the training arguments"),
    ):
        value = getattr(plugin, name)
        if value and type(value).__name__ != "OffloadPolicy":  # the class of "no offloading"
            raise InvalidInputError(f"fsdp_{name}", True, f"false: {why}", _FIX)
    return plugin


def shard(model: nn.Module, device: torch.device, precision: str = "no") -> None:
    """Shards the frozen weights of a bare model over all processes, in place, with torch's `fully_shard`.

    Afterwards each process holds 1/n of every frozen parameter. A block (of `fsdp_transformer_layer_cls_to_wrap`, or
    of the model's `_no_split_modules`) is gathered for its forward and its backward. Parameters with `requires_grad`
    that belong to LoRA layers stay whole. The model is moved to the device, block by block.

    Args:
        model (`torch.nn.Module`):
            The bare model. Its parameters that train must be those of adapters.
        device (`torch.device`):
            Device of this process.
        precision (`str`, *optional*, defaults to `"no"`):
            `"bf16"` or `"fp16"` gathers, and computes, in this precision; the shards keep theirs.

    Raises:
        InvalidInputError: As [`sharding_settings`], or if no block of the model is found.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if "ignored_params" not in inspect.signature(fully_shard).parameters:
        fix = "Update torch, or use DDP."
        raise InvalidInputError("torch", torch.__version__, "a version whose fully_shard can ignore parameters", fix)
    plugin = sharding_settings()
    wraps = fsdp2_prepare_auto_wrap_policy(plugin, model)
    blocks = [module for module in model.modules() if module is not model and wraps is not None and wraps(module)]
    if not blocks:
        raise InvalidInputError(
            "fsdp_auto_wrap_policy",
            plugin.transformer_cls_names_to_wrap or plugin.auto_wrap_policy,
            f"a policy that finds blocks of {type(model).__name__}; without any, every process gathers it whole",
            "Set fsdp_transformer_layer_cls_to_wrap to the class of its blocks, such as ViTLayer.",
        )
    if precision != "no":
        plugin.set_mixed_precision(precision)
    options: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (get_world_size(),)),
        "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
        "ignored_params": {p for name, p in model.named_parameters() if ".lora_" in name},
    }
    for block in reversed(blocks):  # inner ones first
        fully_shard(block, reshard_after_forward=plugin.reshard_after_forward, **options)
    fully_shard(model, **options)


def is_sharded(model: nn.Module) -> bool:
    """Whether parameters of a model are shards."""
    return any(is_shard(parameter) for parameter in model.parameters())


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is torch's `DTensor`, of which each process may hold a part."""
    return hasattr(tensor, "to_local")


def local(tensor: Any) -> Tensor:
    """Returns this process's part of a tensor, without gradient; writing to it changes the tensor."""
    return tensor.detach().to_local() if is_shard(tensor) else tensor.detach()


def whole(tensor: Any) -> Tensor:
    """Returns the values of a tensor, without gradient. Of a shard they are gathered, by all processes together."""
    return tensor.detach().full_tensor() if is_shard(tensor) else tensor.detach()


@torch.no_grad()
def set_whole(tensor: Any, value: Tensor) -> None:
    """Sets the values of a tensor from those of all of it; a shard takes its part. Nothing is sent."""
    if not is_shard(tensor):
        tensor.detach().copy_(value)
        return
    from torch.distributed.tensor import DTensor, Replicate

    mesh = tensor.device_mesh
    everywhere = DTensor.from_local(value.to(tensor.device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    local(tensor).copy_(everywhere.redistribute(mesh, tensor.placements).to_local())


def release_gathered(model: nn.Module) -> None:
    """Frees what a forward has gathered, so that the parameters of a sharded model are its shards again."""
    for module in model.modules():
        if _of_fsdp(type(module)):
            managed: Any = module
            managed.reshard()


def own_class(model: nn.Module) -> type:
    """Returns the class of a model. Sharding gives it a class derived from its own."""
    return next(kind for kind in type(model).__mro__ if not _of_fsdp(kind))


def _of_fsdp(kind: type) -> bool:
    return any(base.__name__ == "FSDPModule" for base in kind.__mro__)


def shared_from_main(tensors: Iterable[Tensor]) -> None:
    """Gives tensors the values that they have in the main process, in place."""
    from accelerate.utils import broadcast

    for tensor in tensors:
        broadcast(tensor.detach())
