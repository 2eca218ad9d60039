"""Where models run, and in which number format: the environment variables PRISM_DEVICE and PRISM_DTYPE.

A model lies on the device; what leaves a harvest is on the CPU, in float32. The number format is that of *bulk work*
alone (activations to train on, text sampled in bulk). What a printed number rests on is float32, always.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
import weakref
from functools import lru_cache
from pathlib import Path

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("auto", "cpu", "cuda", "mps")
CPUINFO = Path("/proc/cpuinfo")


def device() -> torch.device:
    """What `PRISM_DEVICE` names; by default, or for `auto`, CUDA where there is a GPU, else MPS, else the CPU.

    Raises:
        ValueError: no such device, or this PyTorch or this machine has none of that kind.
    """
    wanted = _choice("PRISM_DEVICE", DEVICES, r"cuda:\d+")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(kind for kind, found in there.items() if found))
    kind, _, number = wanted.partition(":")
    if not there[kind] or (number and int(number) >= torch.cuda.device_count()):
        usable = ", ".join(name for name, found in there.items() if found)
        raise ValueError(
            f"PRISM_DEVICE is '{wanted}', and this machine or its PyTorch has no such device; "
            f"choose from auto, {usable}"
        )
    return torch.device(wanted)


def bulk_dtype() -> torch.dtype:
    """Number format of bulk work: what `PRISM_DTYPE` names; for `auto`, bfloat16 where the hardware is made for it.

    That is a GPU that knows the format, or a processor with matrix units for it (AMX), on which its products are 4 to 8
    times faster than float32; on other processors they are slower. The processor's flags decide, not a measurement, so
    the same machine always decides alike.

    Raises:
        ValueError: no such format.
    """
    wanted = _choice("PRISM_DTYPE", ("auto", *DTYPES))
    return DTYPES[wanted if wanted != "auto" else "bfloat16" if _made_for_bfloat16(device()) else "float32"]


_COPIES: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # module -> (its state, its copy)


def beside(module: torch.nn.Module, where: torch.device) -> torch.nn.Module:
    """The module itself if it lies on that device, else a copy of it there, which is kept until its weights change.

    What only looks like a module, such as an SAE written by hand, has to see to its device itself.
    """
    if not isinstance(module, torch.nn.Module):
        return module
    weights = [*module.parameters(), *module.buffers()]
    if all((tensor.device.type, tensor.device.index or 0) == (where.type, where.index or 0) for tensor in weights):
        return module
    state = (where, *((tensor.data_ptr(), tensor._version) for tensor in weights))
    if _COPIES.get(module, (None,))[0] != state:
        _COPIES[module] = (state, copy.deepcopy(module).to(where))
    return _COPIES[module][1]


def as_float16(x: torch.Tensor) -> torch.Tensor:
    """In half precision if its numbers fit there, else as it is.

    Numbers beyond 65,504 would become infinite, and where all are tiny, steps of 6e-8 would lose them: no number may
    move by more than a thousandth of the largest (the rounding itself is half of that at most).
    """
    half = x.half()
    fits = not x.numel() or bool(((half.float() - x.float()).abs() <= 1e-3 * x.abs().max().float()).all())
    return half if fits else x


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` and the like."""
    return str(dtype).removeprefix("torch.")


def screens_in_bfloat16(where: torch.device) -> bool:
    """Whether a product that only has to tell where to look is quicker in bfloat16; what it finds is float32 anyway.

    As for `bulk_dtype`, but for `auto` instructions for bfloat16 are enough (AVX-512: twice as fast as float32).
    """
    wanted = _choice("PRISM_DTYPE", ("auto", *DTYPES))
    return wanted != "float32" and (wanted != "auto" or _made_for_bfloat16(where, ("amx_bf16", "avx512_bf16")))


def _made_for_bfloat16(where: torch.device, flags: tuple[str, ...] = ("amx_bf16",)) -> bool:
    if where.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return where.type == "cpu" and not _processor_flags(str(CPUINFO)).isdisjoint(flags)


@lru_cache
def _processor_flags(cpuinfo: str) -> frozenset[str]:
    try:
        return frozenset(Path(cpuinfo).read_text(encoding="utf-8", errors="replace").split())
    except OSError:  # no Linux
        return frozenset()


def _choice(variable: str, choices: tuple[str, ...], also: str = "(?!)") -> str:
    wanted = os.environ.get(variable, "").strip().lower() or "auto"
    if wanted not in choices and not re.fullmatch(also, wanted):
        near = difflib.get_close_matches(wanted, choices, n=1, cutoff=0.0)[0]
        raise ValueError(f"{variable} is '{wanted}'; did you mean '{near}'? Choose from {', '.join(choices)}")
    return wanted
