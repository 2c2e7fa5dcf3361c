"""Preparing for calls: kernels compiled and loaded before the first one, as CUDA graphs need."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from nvfp4.backends.problem import Problem
from nvfp4.backends.target import target_of
from nvfp4.backends.workload import Workload
from nvfp4.dispatch import choose
from nvfp4.dispatch.select import requested
from nvfp4.ops.linear import linear
from nvfp4.ops.moe import moe
from nvfp4.ops.quantize import quantize_weight
from nvfp4.spec.format import DATA_DTYPE, SCALE_DTYPE, SWIZZLED, W4A4, W4A16
from nvfp4.spec.glu import SILU, columns_per_output
from nvfp4.spec.scale_rules import AMAX_OVER_SIX, SCALE_RULES
from nvfp4.spec.swizzle import scales_shape
from nvfp4.tensors import ExpertWeights


def warmup(
    shapes: Iterable[tuple[int, int]],
    max_m: int = 8192,
    dtypes: Iterable[torch.dtype] = (torch.bfloat16,),
    bias: torch.dtype | None = None,
    device: torch.device | str | None = None,
    scale_rule: str = AMAX_OVER_SIX,
    activation_format: str = W4A4,
    segments: int = 1,
    calibrated: bool = False,
    backend: str = "",
) -> list[str]:
    """Compile, and on a GPU run once, what mm and linear need for weights of these shapes.

    After it no call with these shapes compiles anything: it can be captured in a CUDA graph.

    Args:
        shapes: (N, K) of the weights.
        max_m: the most rows of activations.
        dtypes: of the activations, and so of the outputs.
        bias: the biases' dtype, None for none.
        device: default the current GPU if there is one, else the CPU.
        scale_rule: as in the calls of linear.
        activation_format: "nvfp4" for W4A4 calls, and for mm; "bf16" for W4A16 calls.
        segments: global scales of each weight, one for each of its fused parts.
        calibrated: the calls have a static x_global_scale.
        backend: as the ops' own argument.

    Returns what was compiled ahead, a line a kernel. Raises RuntimeError if a kernel cannot be
    compiled, ValueError for a shape that no weight has.
    """
    where = _device(device)
    dtypes = tuple(dtypes)
    workloads = [
        workload_of(
            *(n, k, max_m, dtypes, bias, scale_rule, activation_format),
            segments=segments,
            calibrated=calibrated,
        )
        for n, k in shapes
    ]
    done = compile_ahead(workloads, where, backend)
    if where.type == "cuda":
        for work in workloads:
            run_once(_linear_of_zeros(work, where, backend), work.k, max_m, dtypes, where)
    return done


def warmup_moe(
    shapes: Iterable[tuple[int, int, int]],
    top_k: int,
    max_m: int = 8192,
    dtypes: Iterable[torch.dtype] = (torch.bfloat16,),
    calibrated: bool = False,
    swiglu_limit: float | None = None,
    device: torch.device | str | None = None,
    scale_rule: str = AMAX_OVER_SIX,
    activation: str = SILU,
    backend: str = "",
) -> list[str]:
    """Compile, and on a GPU run once, what moe needs for experts of these shapes.

    Args:
        shapes: (E, H, I): so many local experts, hidden and intermediate size.
        top_k: choices of a token.
        max_m: the most tokens.
        dtypes: of the activations.
        calibrated: the calls have x_global_scale and h_global_scale.
        swiglu_limit, scale_rule, activation: as in the calls.

    Returns and raises as nvfp4.warmup. A layer that exists already warms up better: layers.MoE's
    own warmup runs exactly its calls.
    """
    where = _device(device)
    dtypes, shapes = tuple(dtypes), tuple(shapes)
    workloads = [
        work
        for experts, hidden, intermediate in shapes
        for work in moe_workloads(
            *(experts, hidden, intermediate, max_m, top_k),
            dtypes,
            calibrated,
            scale_rule,
            activation,
        )
    ]
    done = compile_ahead(workloads, where, backend)
    if where.type == "cuda":
        scale = torch.ones((), dtype=torch.float32, device=where) if calibrated else None
        for experts, hidden, intermediate in shapes:
            parts = columns_per_output(activation)
            w13 = _zeros(experts, parts * intermediate, hidden, parts, where)
            w2 = _zeros(experts, hidden, intermediate, 1, where)

            def call(x: Tensor, weights: Tensor, ids: Tensor, w13=w13, w2=w2) -> Tensor:
                return moe(
                    *(x, weights, ids, w13, w2, scale, scale),
                    swiglu_limit=swiglu_limit,
                    scale_rule=scale_rule,
                    activation=activation,
                    backend=backend,
                )

            run_once(routed(call, experts, top_k), hidden, max_m, dtypes, where)
    return done


# What the layers' own warmup is made of.


def workload_of(
    n: int,
    k: int,
    max_m: int,
    dtypes: Iterable[torch.dtype],
    bias: torch.dtype | None = None,
    scale_rule: str = AMAX_OVER_SIX,
    activation_format: str = W4A4,
    segments: int = 1,
    calibrated: bool = False,
) -> Workload:
    """The workload of mm and linear with weights [n, k] and up to max_m rows."""
    if n < 1 or k < 16 or k % 16:
        need = "(N, K) with N positive and K a positive multiple of 16"
        raise ValueError(f"nvfp4.warmup: shapes needs {need}, got {(n, k)}")
    _positive("max_m", max_m)
    _known_rule(scale_rule)
    if activation_format not in (W4A4, W4A16):
        need = f"{W4A4!r} or {W4A16!r}"
        raise ValueError(f"nvfp4.warmup: activation_format needs {need}, got {activation_format!r}")
    if segments < 1 or n % segments:
        need = f"a positive number that divides N = {n}"
        raise ValueError(f"nvfp4.warmup: segments needs {need}, got {segments}")
    return Workload(
        *(n, k, max_m, tuple(dtypes), bias),
        scale_rule=scale_rule,
        activation_format=activation_format,
        segments=segments,
        calibrated=calibrated and activation_format == W4A4,
    )


def moe_workloads(
    experts: int,
    hidden: int,
    intermediate: int,
    max_m: int,
    top_k: int,
    dtypes: Iterable[torch.dtype],
    glu: bool,
    scale_rule: str = AMAX_OVER_SIX,
    activation: str = "",
    biases: tuple[torch.dtype | None, torch.dtype | None] = (None, None),
) -> tuple[Workload, Workload]:
    """The workloads of moe's two grouped GEMMs.

    `glu`: the scale between them is known. activation: "" is each that has a gate. biases: the
    dtypes of w13's and w2's.
    """
    if experts < 1 or min(hidden, intermediate) < 16 or hidden % 16 or intermediate % 16:
        need = "(E, H, I) with E positive, H and I positive multiples of 16"
        got = (experts, hidden, intermediate)
        raise ValueError(f"nvfp4.warmup_moe: shapes needs {need}, got {got}")
    _positive("max_m", max_m)
    _known_rule(scale_rule)
    _positive("top_k", top_k)
    rows, dtypes = max_m * top_k, tuple(dtypes)
    n = intermediate * (columns_per_output(activation) if activation else 2)
    return (
        Workload(n, hidden, rows, dtypes, biases[0], experts, glu, scale_rule, activation),
        Workload(hidden, intermediate, rows, dtypes, biases[1], experts),
    )


def compile_ahead(
    workloads: Sequence[Workload], device: torch.device, backend: str = ""
) -> list[str]:
    """Fill the caches on disk of the backends that run these workloads; return a line a kernel.

    Raises RuntimeError if a kernel cannot be compiled; on a GPU, where it runs next, warns instead.
    """
    return [line for _, line in compiling(workloads, device, backend)]


def compiling(
    workloads: Sequence[Workload], device: torch.device, backend: str = ""
) -> Iterator[tuple[int, str]]:
    """Do what compile_ahead does, a kernel at a time: how many there are, and its line."""
    target = target_of(device)
    for op in dict.fromkeys(work.op for work in workloads):
        works = [work for work in workloads if work.op == op]
        compile_them = choose(Problem(op, target), requested(backend), strict=False).compile_ahead
        if compile_them is None:
            continue
        compilation = compile_them(works, f"sm_{target.sm or 100}a", 0)
        for kernel, outcome in compilation.outcomes:
            if outcome.startswith("failed"):
                message = f"nvfp4.warmup: {kernel}: {outcome}"
                if device.type != "cuda":
                    raise RuntimeError(message)
                # The calls that follow compile it, or tell why they cannot.
                warnings.warn(message, stacklevel=3)
            yield compilation.kernels, f"{kernel}: {outcome}"


def run_once(
    call: Callable[[Tensor], object],
    k: int,
    max_m: int,
    dtypes: Iterable[torch.dtype],
    device: torch.device,
) -> None:
    """On a GPU, call(x) on zeros [M, k] for every M that may be run by another kernel: what
    compiles at a first call has then done so, and is loaded.
    """
    if device.type != "cuda":
        return
    for dtype in dtypes:
        x = torch.zeros(max_m, k, dtype=dtype, device=device)
        # The largest first: the smaller ones then find memory, and none is asked for again.
        for m in sorted(Workload(0, k, max_m).token_counts(), reverse=True):
            call(x[:m])
    torch.cuda.synchronize(device)


def routed(
    call: Callable[[Tensor, Tensor, Tensor], object],
    experts: int,
    top_k: int,
    expert_offset: int = 0,
) -> Callable[[Tensor], None]:
    """call(x, topk_weights, topk_ids) as a call of x alone: once with the choices spread over the
    local experts, once with all of them one expert's; between the two, with every dtype of ids,
    and with weights in float32 and in x's dtype.
    """

    def both(x: Tensor) -> None:
        for weights, ids in _routings(x, experts, top_k, expert_offset):
            call(x, weights, ids)

    return both


def _routings(
    x: Tensor, experts: int, top_k: int, expert_offset: int
) -> Iterator[tuple[Tensor, Tensor]]:
    shape = (x.shape[0], top_k)
    spread = torch.arange(shape[0] * top_k, dtype=torch.int32, device=x.device) % experts
    weights = torch.ones(shape, dtype=torch.float32, device=x.device)
    yield weights, spread.view(shape) + expert_offset
    yield torch.ones_like(x[:, :1]).expand(shape), spread.new_full(shape, expert_offset).long()


def _device(device: torch.device | str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _positive(argument: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"nvfp4.warmup: {argument} needs a positive number, got {value}")


def _known_rule(scale_rule: str) -> None:
    if scale_rule not in SCALE_RULES:
        need = " or ".join(map(repr, SCALE_RULES))
        raise ValueError(f"nvfp4.warmup: scale_rule needs {need}, got {scale_rule!r}")


def _linear_of_zeros(
    work: Workload, device: torch.device, backend: str
) -> Callable[[Tensor], Tensor]:
    weight = quantize_weight(torch.zeros(work.n, work.k, dtype=torch.bfloat16, device=device))
    bias = None if work.bias is None else torch.zeros(work.n, dtype=work.bias, device=device)
    packed = weight.data, weight.scales, weight.global_scale.expand(work.segments).contiguous()
    p = weight.global_scale if work.calibrated else None
    how = work.scale_rule, work.activation_format
    return lambda x: linear(x, *packed, p, bias, *how, backend)


def _zeros(experts: int, n: int, k: int, segments: int, device: torch.device) -> ExpertWeights:
    shape = (experts, *scales_shape((n, k), SWIZZLED))
    return ExpertWeights(
        torch.zeros(experts, n, k // 2, dtype=DATA_DTYPE, device=device),
        torch.zeros(shape, dtype=DATA_DTYPE, device=device).view(SCALE_DTYPE),
        torch.ones(experts, segments, dtype=torch.float32, device=device),
    )
