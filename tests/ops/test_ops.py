"""The contract of every op: schema, fake, torch.compile, empty, strided and misaligned inputs, bad
input.
"""

import pytest
import torch
from arguments import NAMES, SCHEMAS, arguments
from cases import every_backend, same_bits

import nvfp4

OPS = torch.ops.nvfp4
EACH_OP = pytest.mark.parametrize("name", NAMES)


def outputs(result: torch.Tensor | tuple) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


@EACH_OP
def test_schema(name):
    assert str(getattr(OPS, name).default._schema) == SCHEMAS[name]


@EACH_OP
@pytest.mark.parametrize("layout, m", [("swizzled", 130), ("linear", 3)])
def test_opcheck(name, layout, m, device, compiles):
    """All of opcheck, but for its schema test where an input is float8: it compares with
    torch.allclose, which has no float8. What it checks, test_inputs_are_not_changed does.
    """
    args = arguments(name, m, device, layout)
    utils = ["test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if not any(isinstance(a, torch.Tensor) and a.dtype == torch.float8_e4m3fn for a in args):
        utils.append("test_schema")
    torch.library.opcheck(getattr(OPS, name).default, args, test_utils=utils)


@EACH_OP
def test_compile_fullgraph_dynamic(name, device, compiles):
    """One graph, no break, and no recompilation for a new number of rows."""
    op = getattr(OPS, name)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = torch.compile(lambda *args: op(*args), fullgraph=True, dynamic=True)
    for m in (3, 130, 257):
        args = arguments(name, m, device)
        for got, want in zip(outputs(compiled(*args)), outputs(op(*args)), strict=True):
            same_bits(got, want)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 2, counters["stats"]


@EACH_OP
def test_fake_has_the_shapes_dtypes_and_strides_of_the_real_outputs(name, device):
    from torch._subclasses.fake_tensor import FakeTensorMode

    for m in (1, 128, 129):
        args = arguments(name, m, device)
        with FakeTensorMode() as mode:
            fake_args = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args]
            fakes = outputs(getattr(OPS, name)(*fake_args))
        for fake, real in zip(fakes, outputs(getattr(OPS, name)(*args)), strict=True):
            assert (
                fake.shape == real.shape
                and fake.dtype == real.dtype
                and fake.stride() == real.stride()
            )
            assert real.is_contiguous()


@EACH_OP
def test_empty(name, device):
    for result in outputs(getattr(OPS, name)(*arguments(name, 0, device))):
        # Grouped scales keep a tile for every expert but one, and offsets their E + 1 zeros.
        assert not result.view(torch.uint8).any() and result.device.type == device


@EACH_OP
def test_inputs_are_not_changed(name, device):
    args = arguments(name, 5, device)
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    getattr(OPS, name)(*args)
    for now, then in zip(args, before, strict=True):
        if isinstance(now, torch.Tensor):
            same_bits(now, then)


def _strided(x: torch.Tensor) -> torch.Tensor:
    """The same values, every other element of a larger buffer along the last dimension."""
    if x.dim() == 0:
        return x
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype, device=x.device)
    wide[..., ::2] = x
    return wide[..., ::2]


def _row_strided(x: torch.Tensor) -> torch.Tensor:
    """The same values, rows cut out of wider ones."""
    if x.dim() < 2:
        return x
    wide = torch.zeros(*x.shape[:-1], x.shape[-1] + 7, dtype=x.dtype, device=x.device)
    wide[..., 3:-4] = x
    return wide[..., 3:-4]


def _misaligned(x: torch.Tensor) -> torch.Tensor:
    """The same values, one element off any alignment."""
    flat = torch.zeros(x.numel() + 1, dtype=x.dtype, device=x.device)
    flat[1:] = x.reshape(-1)
    return flat[1:].view(x.shape)


def _runnable(name: str, device: str) -> list[str]:
    """The backends that can run every stage of an op here."""
    stages = nvfp4.explain(name, device).stages
    able = [{v.backend for v in stage.verdicts if not v.reasons} for stage in stages]
    return sorted(set.intersection(*able))


@every_backend
@EACH_OP
@pytest.mark.parametrize("view", [_strided, _row_strided, _misaligned])
def test_views(name, view, device):
    args = arguments(name, 6, device)
    viewed = [view(a) if isinstance(a, torch.Tensor) else a for a in args]
    for backend in _runnable(name, device):
        want = outputs(getattr(OPS, name)(*args, backend=backend))
        for g, w in zip(outputs(getattr(OPS, name)(*viewed, backend=backend)), want, strict=True):
            same_bits(g, w)


@every_backend
def test_strided_global_scales(device):
    """One a row, a segment or an expert, every other element of a longer vector."""
    x = torch.randn(6, 64, device=device)
    w = nvfp4.concatenate([nvfp4.quantize(torch.randn(24, 64, device=device)) for _ in range(2)])
    p = torch.rand(6, device=device) + 0.01
    calls = (
        (p, lambda p, backend: OPS.quantize(x, p, backend=backend)),
        (p, lambda p, backend: OPS.silu_mul_quantize(x, p, backend=backend)),
        (p, lambda p, backend: OPS.linear(x, w.data, w.scales, w.global_scale, p, backend=backend)),
        (w.global_scale, lambda p, backend: OPS.linear(x, w.data, w.scales, p, backend=backend)),
    )
    for backend in _runnable("linear", device):
        for scale, call in calls:
            want = outputs(call(scale, backend))
            for got, expected in zip(outputs(call(_strided(scale), backend)), want, strict=True):
                same_bits(got, expected)


def test_float4_view_is_accepted(device):
    w = nvfp4.quantize(torch.randn(24, 32, device=device))
    x = torch.randn(3, 32, device=device)
    packed = w.data.view(torch.float4_e2m1fn_x2)
    same_bits(
        OPS.linear(x, packed, w.scales, w.global_scale),
        OPS.linear(x, w.data, w.scales, w.global_scale),
    )
    same_bits(OPS.dequantize(packed, w.scales, w.global_scale), w.dequantize())
    a = nvfp4.quantize(x)
    got = OPS.mm(
        a.data.view(torch.float4_e2m1fn_x2),
        packed,
        a.scales,
        w.scales,
        torch.ones((), device=device),
    )
    same_bits(got, OPS.mm(a.data, w.data, a.scales, w.scales, torch.ones((), device=device)))


def test_default_out_dtype_is_bfloat16(device):
    w = nvfp4.quantize(torch.randn(24, 32, device=device))
    assert OPS.dequantize(w.data, w.scales, w.global_scale).dtype == torch.bfloat16
    one = torch.ones((), device=device)
    assert OPS.mm(w.data, w.data, w.scales, w.scales, one).dtype == torch.bfloat16


def _replaced(args: tuple, index: int, value: object) -> tuple:
    return (*args[:index], value, *args[index + 1 :])


def _bad_inputs() -> list:
    f64 = torch.float64
    nan, inf = float("nan"), float("inf")
    cases = [
        (
            "quantize",
            0,
            lambda x: x[:, :17],
            "x needs a last dimension that is a positive multiple of 16",
        ),
        ("quantize", 0, lambda x: x[:, :0], "x needs a last dimension"),
        (
            "quantize",
            0,
            lambda x: x.to(f64),
            "x needs dtype bfloat16 or float16 or float32, got float64",
        ),
        ("quantize", 0, lambda x: x.int(), "x needs dtype"),
        ("quantize", 1, lambda p: p.to(f64), "global_scale needs dtype float32"),
        ("quantize", 1, lambda p: p.expand(4), r"global_scale needs shape \[\], \[1\] or \[6\]"),
        ("quantize", 1, lambda p: p.view(1, 1), "global_scale needs shape"),
        (
            "quantize",
            2,
            lambda _: "diagonal",
            "scale_layout needs 'swizzled' or 'linear', got 'diagonal'",
        ),
        ("quantize_dynamic", 0, lambda x: x[:, :8], "x needs a last dimension"),
        ("quantize_dynamic", 1, lambda _: "", "scale_layout needs"),
        ("dequantize", 0, lambda d: d[:, :5], "data needs a last dimension"),
        ("dequantize", 0, lambda d: d.int(), "data needs dtype uint8 or float4_e2m1fn_x2"),
        ("dequantize", 1, lambda s: s[:, :4], r"scales needs the swizzled shape \[128, 8\]"),
        ("dequantize", 1, lambda s: s.view(torch.uint8), "scales needs dtype float8_e4m3fn"),
        ("dequantize", 3, lambda _: torch.int8, "out_dtype needs one of"),
        ("dequantize", 4, lambda _: "linear", "scales needs the linear shape"),
        (
            "silu_mul_quantize",
            0,
            lambda x: x[:, :48],
            "gate_up needs a last dimension that is a positive multiple of 32",
        ),
        ("silu_mul_quantize", 2, lambda _: -1.0, "swiglu_limit needs a finite positive number"),
        ("silu_mul_quantize", 2, lambda _: nan, "swiglu_limit needs"),
        ("rmsnorm_quantize", 0, lambda x: x[:, :8], "x needs a last dimension"),
        ("rmsnorm_quantize", 1, lambda w: w[:-1], r"weight needs shape \[96\], got shape \[95\]"),
        ("rmsnorm_quantize", 1, lambda w: w.int(), "weight needs dtype"),
        ("rmsnorm_quantize", 3, lambda r: r.float(), "residual needs dtype bfloat16, got float32"),
        ("rmsnorm_quantize", 3, lambda r: r[:1], r"residual needs x's shape \[6, 96\]"),
        ("rmsnorm_quantize", 4, lambda _: torch.ones(4), "global_scale needs shape"),
        ("rmsnorm_quantize", 5, lambda _: "", "scale_layout needs"),
        ("mm", 0, lambda a: a[0], "a needs 2 dimensions"),
        ("mm", 1, lambda b: b[:, :40], "b needs a's K = 96"),
        ("mm", 2, lambda s: s[:, :6], r"a_scales needs the swizzled shape \[128, 8\]"),
        ("mm", 3, lambda s: s.reshape(-1), "b_scales needs the swizzled shape"),
        ("mm", 4, lambda p: p.expand(5), r"alpha needs shape"),
        ("mm", 4, lambda p: p.expand(5, 1), r"alpha needs shape"),
        (
            "mm",
            4,
            lambda p: p.expand(1, 7),
            "alpha needs a number of segments that divides N = 40, got 7",
        ),
        ("mm", 4, lambda p: p.bfloat16(), "alpha needs dtype float32"),
        ("mm", 6, lambda b: b[:-1], r"bias needs shape \[40\]"),
        ("mm", 7, lambda _: torch.float64, "out_dtype needs one of"),
        ("linear", 0, lambda x: x[:, :64], "weight needs x's K = 64"),
        ("linear", 1, lambda w: w.float(), "weight needs dtype uint8"),
        ("linear", 2, lambda s: s[:64], "weight_scales needs the swizzled shape"),
        (
            "linear",
            3,
            lambda p: p.expand(3),
            "weight_global_scale needs a number of segments that divides N = 40",
        ),
        ("linear", 4, lambda _: torch.ones(4), "x_global_scale needs shape"),
        ("linear", 5, lambda b: b.double(), "bias needs dtype"),
        ("linear", 5, lambda b: b[None], "bias needs shape"),
    ]
    for bad in (nan, inf, 0.0, -1.0):
        eps = "eps needs a finite number of at least"
        cases.append(("rmsnorm_quantize", 2, lambda _, bad=bad: bad, eps))
        for name, index, argument in [
            ("quantize", 1, "global_scale"),
            ("dequantize", 2, "global_scale"),
            ("silu_mul_quantize", 1, "global_scale"),
            ("rmsnorm_quantize", 4, "global_scale"),
            ("mm", 4, "alpha"),
            ("linear", 3, "weight_global_scale"),
            ("linear", 4, "x_global_scale"),
        ]:
            made = lambda _, bad=bad: torch.tensor(bad)  # noqa: E731
            cases.append((name, index, made, f"{argument} needs finite positive values, got {bad}"))
    return cases


@pytest.mark.parametrize("name, index, change, message", _bad_inputs())
def test_bad_input(name, index, change, message):
    args = arguments(name, 6, "cpu")
    with pytest.raises(ValueError, match=rf"nvfp4::{name}: {message}"):
        getattr(OPS, name)(*_replaced(args, index, change(args[index])))


@EACH_OP
def test_tensors_on_different_devices(name):
    args = arguments(name, 6, "cpu")
    tensors = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor)]
    for index in tensors[1:]:
        with pytest.raises(
            ValueError,
            match=rf"nvfp4::{name}: \w+ needs to be on cpu with the other tensors, got meta",
        ):
            getattr(OPS, name)(*_replaced(args, index, args[index].to("meta")))


@EACH_OP
def test_unknown_backend(name):
    with pytest.raises(
        ValueError, match="backend needs one of cutedsl, triton, reference, got 'cublas'"
    ):
        getattr(OPS, name)(*arguments(name, 6, "cpu"), backend="cublas")
