"""A pretended second device: tensors that compute on the CPU but refuse to be mixed with the CPU's own.

No GPU is needed to learn whether code moves its tensors where they belong. Inside `pretended()` a tensor on `cuda` is a
subclass that says so of itself. As on a real one, an operation between it and a CPU tensor of one or more dimensions is
an error, `numpy()` is an error, and CPU tensors may still serve as an index.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
INDEXED = ("__getitem__", "__setitem__", "index_put_", "index_put")
MOVES = ("to", "cpu", "cuda", "copy_", "type_as")
# What PyTorch asks of a tensor without computing with it.
ASKS = (
    "__get__",
    "__set__",
    "__delete__",
    "size",
    "dim",
    "stride",
    "numel",
    "is_floating_point",
    "is_complex",
    "data_ptr",
    "requires_grad_",
    "__len__",
    "__repr__",
    "_make_subclass",
    "is_contiguous",
    "storage_offset",
    "untyped_storage",
    "_has_compatible_shallow_copy_type",
    "_use_count",
    "detach",
)


class There(torch.Tensor):
    """A tensor on the pretended device."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def __deepcopy__(self, memo):
        with torch._C.DisableTorchFunctionSubclass():
            copied = torch.Tensor.clone(self.as_subclass(torch.Tensor)).as_subclass(There)
        copied.requires_grad = self.requires_grad
        if getattr(self, "_is_param", False):
            copied = torch.nn.Parameter(copied, requires_grad=self.requires_grad)
        return copied


def _bare(value):
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(torch.Tensor) if isinstance(value, There) else value


def _there(value):
    with torch._C.DisableTorchFunctionSubclass():
        if not isinstance(value, torch.Tensor) or isinstance(value, There):
            return value
        if value.layout == torch.strided:
            return value.as_subclass(There)
        value.lies_there = True  # a sparse tensor can be no subclass
        return value


def _lies_there(value) -> bool:
    return isinstance(value, There) or hasattr(value, "lies_there")


def _is_there(where) -> bool:
    return where is not None and torch.device(where).type == "cuda"


def _target(name, args, kwargs):
    """The device that a move or a factory is asked for; None if none was named."""
    if name == "cpu":
        return CPU
    if name == "cuda":
        return CUDA
    if name == "to":
        for value in (*args[1:], *kwargs.values()):
            if isinstance(value, torch.Tensor):
                return CUDA if isinstance(value, There) else CPU
            if isinstance(value, torch.device) or (isinstance(value, str) and not isinstance(value, torch.dtype)):
                return torch.device(value)
    return kwargs.get("device")


def run(func, args, kwargs):
    """One PyTorch function under the device's rules."""
    name = getattr(func, "__name__", "")
    if name == "_parse_to" or func is torch.device:  # look at arguments alone
        return func(*args, **kwargs)
    inputs = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    there = any(map(_lies_there, inputs))
    if there and name in ("numpy", "__array__"):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
    if name == "__get__" and func == torch.Tensor.device.__get__:
        return CUDA if there else CPU
    if name == "__get__" and func == torch.Tensor.is_cuda.__get__:
        return there
    if there and name not in (*MOVES, *ASKS):
        mixed = args[2:] if name in INDEXED else (args, kwargs)  # an index may lie on the CPU
        others = [v for v in tree_flatten(mixed)[0] if isinstance(v, torch.Tensor) and not _lies_there(v)]
        if any(other.dim() for other in others) or (name in INDEXED and not isinstance(args[0], There)):
            raise RuntimeError(f"Expected all tensors to be on the same device, in {name}: cuda:0 and cpu")
    target = _target(name, args, kwargs)
    args, kwargs = tree_map(_on_cpu, (args, kwargs))
    with torch._C.DisableTorchFunctionSubclass():
        out = func(*args, **kwargs)
    if name == "copy_":
        return inputs[0]
    ends = _is_there(target) if target is not None else there
    if name in ("__get__",) and not isinstance(out, torch.Tensor):
        return out
    return tree_map(_there if ends else _bare, out)


def _on_cpu(value):
    if isinstance(value, torch.device):
        return CPU
    if isinstance(value, str) and value.partition(":")[0] == "cuda":
        return "cpu"
    return value


class _Generator(torch.Generator):
    """The CPU's, whatever device it is asked for on."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls)


class _Rules(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


@contextlib.contextmanager
def pretended() -> Iterator[None]:
    """Inside, this machine has one CUDA device, of the pretended kind."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            mock.patch.dict("os.environ", {"PRISM_DEVICE": "cuda", "PRISM_DTYPE": "float32"}),
            mock.patch("torch.cuda.is_available", lambda: True),
            mock.patch("torch.cuda.device_count", lambda: 1),
            mock.patch("torch.Generator", _Generator),
            _Rules(),
        ):
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
