"""Kernels that colossalai asks its loaders for, in plain PyTorch, for machines without an accelerator.

Both go through `register_extension`, the loaders' own door for them. Paths are relative to the installed `colossalai/`.
"""

from __future__ import annotations

from typing import Any

import torch

from colossal_llama.upstream import require_line


class HostAdam:
    """What `cpu_adam.CPUAdamOptimizer` does (kernel/extensions/csrc/kernel/x86/cpu_adam.cpp), in plain torch."""

    def __init__(self, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, adamw: bool) -> None:
        assert adamw, "only the decoupled decay of AdamW is used here"

    def step(
        self,
        step: int,
        lr: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        bias_correction: bool,
        param: torch.Tensor,
        grad: torch.Tensor,
        exp_avg: torch.Tensor,
        exp_avg_sq: torch.Tensor,
        div_scale: float,
    ) -> None:
        """One AdamW step of `param`, in place; the gradient is `grad / div_scale` if that is positive."""
        assert bias_correction and param.dtype is torch.float32
        grad = grad / div_scale if div_scale > 0 else grad
        exp_avg.mul_(beta1).add_(grad, alpha=1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        denominator = (exp_avg_sq / (1 - beta2**step)).sqrt_().add_(eps)
        param.mul_(1 - lr * weight_decay).addcdiv_(exp_avg, denominator, value=-lr / (1 - beta1**step))


def register_adam() -> None:
    """Offer `HostAdam` to HybridAdam and CPUAdam."""
    from colossalai.kernel.extensions.base_extension import _Extension
    from colossalai.kernel.kernel_loader import CPUAdamLoader
    from colossalai.nn.optimizer.cpu_adam import CPUAdam

    # nn/optimizer/cpu_adam.py:80 asks for a compiled kernel, and the stock one wants CUDA headers.
    require_line(CPUAdam.__init__, "CPUAdamLoader().load()")

    class HostAdamExtension(_Extension):
        """Offers `HostAdam` under the name colossalai looks for."""

        CPUAdamOptimizer = HostAdam

        def __init__(self) -> None:
            super().__init__("cpu_adam_host", support_aot=False, support_jit=False, priority=0)

        def is_available(self) -> bool:
            return True

        def assert_compatible(self) -> None:
            """It runs everywhere."""

        def build_aot(self) -> None:
            raise NotImplementedError("nothing to build")

        build_jit = build_aot

        def load(self) -> Any:
            return type(self)

    CPUAdamLoader.register_extension(HostAdamExtension)


def register_sdpa() -> None:
    """Offer scaled_dot_product_attention to the shardformer's flash attention."""
    from colossalai.kernel import kernel_loader
    from colossalai.kernel.extensions.pybind.flash_attention import FlashAttentionSdpaCudaExtension

    # Its code is scaled_dot_product_attention, which a CPU has too; only this question keeps it away.
    require_line(FlashAttentionSdpaCudaExtension.is_available, "torch.cuda.is_available()")

    class HostSdpaExtension(FlashAttentionSdpaCudaExtension):
        """The same kernel without that question."""

        def is_available(self) -> bool:
            return True

    for loader in (
        kernel_loader.FlashAttentionLoader,
        kernel_loader.FlashAttentionWithCustomMaskLoader,
        kernel_loader.FlashAttentionForFloatAndCustomMaskLoader,
    ):
        loader.register_extension(HostSdpaExtension)
