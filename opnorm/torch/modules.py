"""Checks, values, and first and second derivatives of PyTorch modules on the host."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.typing import DTypeLike

from opnorm import extras

# PyTorch is optional, so its types cannot be stated.
Module = Any
Tensor = Any
Torch = Any


def import_torch() -> Torch:
    """Returns the module torch.

    Raises:
      MissingPackage: if PyTorch is not installed.
    """
    with extras.needed("opnorm.torch.from_torch", extra="torch"):
        import torch

        return torch


def check(module: Module) -> None:
    """Raises ValueError unless a module is a function of each row alone.

    Raises:
      ValueError: for an object that is no module, a module that is in training mode, or
        that has a BatchNorm without running statistics.
    """
    torch = import_torch()
    if not isinstance(module, torch.nn.Module):
        raise ValueError(
            f"module is a {type(module).__name__}; it must be a torch.nn.Module. A "
            "function of tensors becomes one in the forward method of a class."
        )
    for name, part in module.named_modules():
        place = f"its part {name!r}" if name else "it"
        if part.training:
            raise ValueError(
                f"module is a {type(module).__name__}, and {place} is in training "
                "mode; call module.eval() first."
            )
        if (
            isinstance(part, torch.nn.modules.batchnorm._BatchNorm)
            and part.running_mean is None
        ):
            raise ValueError(
                f"module is a {type(module).__name__}, and {place} is a BatchNorm "
                "without running statistics (track_running_stats=False), so its rows "
                "depend on each other."
            )


@dataclasses.dataclass(frozen=True)
class Host:
    """Values and derivatives of a module, as NumPy arrays.

    Attributes:
      module: the module.
      channels_first: whether batches (B, H, W, C) are transposed to (B, C, H, W).
    """

    module: Module
    channels_first: bool

    def output_shape(
        self, row_shape: tuple[int, ...], dtype: DTypeLike
    ) -> tuple[int, ...]:
        """Returns the shape of one row of the output, by a pass over two rows.

        Raises:
          ValueError: if the module fails, or does not return one floating tensor with a
            row for each example.
        """
        check(self.module)
        torch = import_torch()
        shape = (2, *row_shape)
        try:
            with torch.no_grad():
                out = self._forward(self._tensor(np.full(shape, 0.5, dtype)))
        except (RuntimeError, TypeError, IndexError, NotImplementedError) as error:
            raise ValueError(
                f"module {type(self.module).__name__} fails on x of shape "
                f"(B, {', '.join(map(str, row_shape))}){self._turned(len(shape))}: "
                f"{error}"
            ) from error
        return tuple(out.shape[1:])

    def compute(self, kind: str, *args: np.ndarray) -> np.ndarray:
        """Computes a kind of :mod:`opnorm.torch.calls`.

        Raises:
          ValueError: for a module in training mode, or one that has no derivative.
        """
        check(self.module)
        torch = import_torch()
        kinds: dict[str, Callable[..., Tensor]] = {
            "apply": self._apply,
            "push": self._push,
            "pull": self._pull,
            "curve": self._curve,
            "bend": self._bend,
        }
        with torch.enable_grad():
            out = kinds[kind](*map(self._tensor, args))
        # Moved first, since some devices have no float64.
        wide = torch.float64 if args[0].dtype == np.float64 else torch.float32
        found: np.ndarray = out.detach().cpu().to(wide).numpy()
        return found

    def _apply(self, x: Tensor) -> Tensor:
        with import_torch().no_grad():
            return self._forward(x)

    def _push(self, x: Tensor, v: Tensor) -> Tensor:
        forward = import_torch().autograd.forward_ad
        try:
            with forward.dual_level():
                out = self._forward(forward.make_dual(x, v))
                tangent = forward.unpack_dual(out).tangent
        except (RuntimeError, NotImplementedError):
            # An operation without forward mode: J v is the derivative of <J^T u, v> in
            # u, the same for every u.
            x.requires_grad_()
            out = self._forward(x)
            u = out.new_zeros(out.shape).requires_grad_()
            pulled = self._gradient(out, x, u, create_graph=True)
            return self._gradient(pulled, u, v, linear=True)
        return out.new_zeros(out.shape) if tangent is None else tangent

    def _pull(self, x: Tensor, u: Tensor) -> Tensor:
        x.requires_grad_()
        return self._gradient(self._forward(x), x, u)

    def _curve(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        x.requires_grad_()
        pulled = self._gradient(self._forward(x), x, u, create_graph=True)
        return self._gradient(pulled, x, v, linear=True)

    def _bend(self, x: Tensor, v: Tensor, w: Tensor) -> Tensor:
        x.requires_grad_()
        out = self._forward(x)
        u = out.new_zeros(out.shape).requires_grad_()
        pulled = self._gradient(out, x, u, create_graph=True)
        curved = self._gradient(pulled, x, v, create_graph=True, linear=True)
        return self._gradient(curved, u, w, linear=True)

    def _gradient(
        self,
        out: Tensor,
        of: Tensor,
        weights: Tensor,
        *,
        create_graph: bool = False,
        linear: bool = False,
    ) -> Tensor:
        """The gradient of ``<weights, out>``.

        It is zero where ``out`` is itself a gradient (``linear``) and does not depend
        on ``of``.
        """
        torch = import_torch()
        if not out.requires_grad:
            if linear:
                return torch.zeros_like(of)
            raise ValueError(
                f"module {type(self.module).__name__} returns a tensor without a "
                "gradient: something in it, such as detach, no_grad or argmax, ends "
                "the graph. Attacks that need no gradient can be used."
            )
        (found,) = torch.autograd.grad(
            out,
            of,
            weights.to(out.dtype),
            create_graph=create_graph,
            allow_unused=True,
        )
        return torch.zeros_like(of) if found is None else found

    def _forward(self, x: Tensor) -> Tensor:
        torch = import_torch()
        images = x
        if self.channels_first and x.ndim == 4:
            images = x.permute(0, 3, 1, 2)
        # A copy in PyTorch's usual layout: modules call view, and may write into it.
        out = self.module(images.clone(memory_format=torch.contiguous_format))
        name = type(self.module).__name__
        if not isinstance(out, torch.Tensor):
            raise ValueError(
                f"module {name} returns a {type(out).__name__}; it must return one "
                "tensor, such as the logits."
            )
        if not out.is_floating_point() or out.ndim < 1 or len(out) != len(x):
            raise ValueError(
                f"module {name} returns a tensor of shape {tuple(out.shape)} and dtype "
                f"{out.dtype} for {len(x)} examples; it must be floating, with a row "
                "for each example."
            )
        return out

    def _tensor(self, array: np.ndarray) -> Tensor:
        """The array on the device of the module's first parameter, in its dtype."""
        torch = import_torch()
        tensor = torch.from_numpy(np.array(array))
        for one in (*self.module.parameters(), *self.module.buffers()):
            if one.is_floating_point():
                return tensor.to(one.device, one.dtype)
        return tensor

    def _turned(self, rank: int) -> str:
        if not (self.channels_first and rank == 4):
            return ""
        return ", which channels_first=True turns from (B, H, W, C) into (B, C, H, W)"
