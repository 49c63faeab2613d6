"""BatchNorm of a frozen base, which must stay as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def batch_norm_frozen(model: nn.Module) -> Iterator[None]:
    """
    Keeps every BatchNorm of the frozen base in eval mode, also through `model.train()`.

    A BatchNorm in training mode normalises by the batch and moves its running statistics at every forward. No adapter
    saves these: the base that the adapter was trained with would be another one than it is loaded on. RT-DETR and
    D-FINE, LeViT and MobileViT, for example, have such layers outside any frozen backbone.

    Layers with a parameter that trains are left alone. On leaving, every layer is in the mode that `model.train()` and
    `model.eval()` would have given it.

    Args:
        model (`torch.nn.Module`): the model to train, wrapped or bare.

    Example:

        ```py
        >>> with batch_norm_frozen(model):
        ...     trainer.train()
        ```
    """
    frozen = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters())
    ]
    handles = [module.register_forward_pre_hook(_into_eval) for module in frozen]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in frozen:
            module.train(model.training)


def _into_eval(module: nn.Module, inputs: tuple) -> None:
    module.eval()
