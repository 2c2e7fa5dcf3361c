"""Compiling launches for any NVIDIA architecture on a machine without a GPU."""

from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from nvfp4.backends.triton.launch import Launch, specialized

_POINTERS = {
    torch.uint8: "*u8",
    torch.uint16: "*u16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
}
_DIVISIBLE = [["tt.divisibility", 16]]


def compile_launch(launch: Launch, sm: int) -> CompiledKernel:
    """Compile what `launch` would run on an sm_<sm> GPU; its tensors may be meta tensors.

    Arguments are specialized as a launch specializes them, unless the kernel says not to: None and
    1 are constants; pointers (fresh allocations are aligned) and multiples of 16 are marked
    divisible.
    """
    signature: dict[str, str] = {}
    constants: dict[str, Any] = dict(launch.constants)
    attributes: dict[tuple[int, ...], Any] = {}
    arguments = zip(launch.kernel.arg_names, launch.args, specialized(launch.kernel), strict=False)
    for index, (name, value, special) in enumerate(arguments):
        if isinstance(value, Tensor):
            signature[name] = _POINTERS[value.dtype]
            attributes[(index,)] = _DIVISIBLE
        elif isinstance(value, TensorDescriptor):
            element = _POINTERS[value.base.dtype].removeprefix("*")
            signature[name] = f"tensordesc<{element}{value.block_shape},{value.layout!r}>"
        elif value is None or (value == 1 and special):
            signature[name] = "constexpr"
            constants[name] = value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0 and special:
                attributes[(index,)] = _DIVISIBLE
    signature |= dict.fromkeys(launch.constants, "constexpr")
    language = GluonASTSource if launch.kernel.is_gluon() else ASTSource
    source = language(launch.kernel, signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=launch.options)
