"""Small PTX kernels for the emulator: what their tests need around a few instructions."""

import struct
from collections.abc import Mapping
from typing import Any

import torch

from nvfp4.backends.cutedsl.emulator import Options, Report, execute

HEAD = """
.version 8.8
.target sm_100a
.address_size 64
.extern .shared .align 1024 .b8 smem[];
"""
REGISTERS = """
.reg .b8 %b<8>; .reg .b16 %h<64>; .reg .b32 %r<128>; .reg .b64 %d<64>; .reg .pred %q<16>;
.reg .b32 %t, %s;
mov.u32 %t, %tid.x; mov.u32 %s, smem;
"""
MBARRIER = "fence.mbarrier_init.release.cluster;\nbar.sync 0;\n"


def kernel(body: str, memory: Mapping[str, Any] = {}, maps: Mapping[str, bytes] = {}) -> str:  # noqa: B006
    """A module with one kernel. %t is the thread's number, %s the address of its dynamic shared
    memory, %<name> that of each tensor and each tensor map.
    """
    parameters = [f".param .u64 {name}_" for name in memory]
    parameters += [f".param .align 64 .b8 {name}_[128]" for name in maps]
    own = "".join(f".reg .b64 %{name};\n" for name in (*memory, *maps))
    own += "".join(f"ld.param.u64 %{name}, [{name}_];\n" for name in memory)
    own += "".join(f"mov.b64 %{name}, {name}_; cvta.param.u64 %{name}, %{name};\n" for name in maps)
    return f"{HEAD}.visible .entry k({', '.join(parameters)}) {{{REGISTERS}{own}{body}\nret;\n}}\n"


def run(
    body: str,
    memory: Mapping[str, torch.Tensor] = {},  # noqa: B006
    maps: Mapping[str, bytes] = {},  # noqa: B006
    grid: tuple[int, int, int] = (1, 1, 1),
    block: int | tuple[int, int, int] = 32,
    cluster: tuple[int, int, int] = (1, 1, 1),
    smem: int = 65536,
    outputs: str = "",
    **options: Any,
) -> Report:
    """Runs such a kernel. `outputs`: names of the tensors that it must write whole."""
    block = (block, 1, 1) if isinstance(block, int) else block
    parameters = b"".join(struct.pack("<Q", t.data_ptr()) for t in memory.values())
    for data in maps.values():
        parameters += bytes(-len(parameters) % 64) + data
    given = Options(outputs=frozenset(outputs.split()), **options)
    text = kernel(body, memory, maps)
    return execute(text, "k", grid, block, cluster, smem, parameters, memory, given)


ELEMENT = {8: 0, 16: 1, 32: 2, 64: 4, 4: 11}
"""A tensor map's code of elements of so many bits."""


def tensor_map(
    tensor: torch.Tensor,
    box: tuple[int, ...],
    swizzle: int = 0,
    bits: int | None = None,
    sizes: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
) -> bytes:
    """A tiled map over a dense tensor, the innermost dimension first. `swizzle`: 0 to 3."""
    bits = bits or 8 * tensor.element_size()
    sizes = sizes or tuple(reversed(tensor.shape))
    if strides is None:
        strides, pitch = (), sizes[0] * bits // 8
        for size in sizes[1:]:
            strides, pitch = (*strides, pitch), pitch * size
    word1 = (len(sizes) - 1) << 4 | ELEMENT[bits] << 7 | swizzle << 13 | 1 << 18 | 2
    words = [tensor.data_ptr() & 0xFFFFFFFF, tensor.data_ptr() >> 32, word1]
    words += [*(s // 16 for s in strides), *[0] * (4 - len(strides))]
    words += [0]
    words += [*(n - 1 for n in sizes), *[0] * (5 - len(sizes))]
    data = bytearray(struct.pack("<13I", *words) + bytes(76))
    data[55 : 55 + len(box)] = bytes(n - 1 for n in box)
    return bytes(data)
