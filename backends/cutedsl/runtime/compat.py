"""Names that CuTe DSL and TVM-FFI do not promise to keep: nobody else here may use one.

nvidia-cutlass-dsl 4.6.0, 4.7.1 and 4.8.1 have the names under cutlass and compile our kernels.
apache-tvm-ffi 0.1.15 has Function.__from_extern_c__. setup.cfg keeps later minor versions out: run
tests/test_sm100_compile.py on a new one before the bound is raised.
"""

from collections.abc import Callable
from typing import Any

import tvm_ffi
from cutlass._mlir import ir
from cutlass._mlir._mlir_libs._cutlass_ir._execution_engine import BinaryExecutionEngine
from cutlass._mlir.dialects import cute_nvgpu, llvm
from cutlass.cute.runtime import find_runtime_libraries

__all__ = ["inline_asm", "load", "tensor_map_address"]


def inline_asm(
    text: str, constraints: str, operands: list[Any], results: list[str], loc: Any, ip: Any
) -> list[Any]:
    """Emit a volatile asm block, and return a value for each result.

    `operands` and the returned values are MLIR's; `results` are names of MLIR types such as "i32".
    """
    types = [ir.Type.parse(name) for name in results]
    returned = types[0] if len(types) == 1 else None
    if len(types) > 1:  # LLVM returns several results as one struct
        returned = ir.Type.parse(f"!llvm.struct<({', '.join(results)})>")
    out = llvm.inline_asm(
        returned,
        operands,
        text,
        constraints,
        has_side_effects=True,
        is_align_stack=False,
        asm_dialect=llvm.AsmDialect.AD_ATT,
        loc=loc,
        ip=ip,
    )
    if len(types) > 1:
        return [llvm.extractvalue(t, out, [i], loc=loc, ip=ip) for i, t in enumerate(types)]
    return [out] if types else []


def tensor_map_address(atom: Any, loc: Any, ip: Any) -> Any:
    """Return the address of the tensor map that a TMA atom carries, in the kernel's parameters."""
    executable = cute_nvgpu.atom_make_exec_tma(atom._trait.value, loc=loc, ip=ip)
    pointer = ir.Type.parse("!cute.ptr<!cute_nvgpu.tma_descriptor_tiled, generic, align<64>>")
    return cute_nvgpu.get_tma_desc_addr(pointer, executable, loc=loc, ip=ip).toint(loc=loc, ip=ip)


def load(object_code: bytes, name: str) -> Callable[..., Any]:
    """Link object code, and return its TVM-FFI function `name`.

    The function takes integers for pointers and for the stream.
    """
    engine = BinaryExecutionEngine(object_code, find_runtime_libraries(), True)
    address = engine.lookup(f"__tvm_ffi_{name}")
    return tvm_ffi.Function.__from_extern_c__(address, keep_alive_object=engine)
