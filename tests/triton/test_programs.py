"""What was launched on some operands is launched on the next as a plan made for them would be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from nvfp4.backends.extents import extent
from nvfp4.backends.program import Program, record
from nvfp4.backends.triton import (
    glu_quantize,
    grouped_mm,
    linear,
    mm,
    moe_dispatch,
    quantize,
    route,
    weight_only_linear,
    weight_only_moe,
)
from nvfp4.backends.triton.runtime.descriptors import Described
from nvfp4.backends.triton.runtime.launch import Launch
from nvfp4.calls import (
    Dispatched,
    GluQuantize,
    GroupedMm,
    Linear,
    Mm,
    Moe,
    MoeDispatch,
    Packed,
    Quantize,
    Quantized,
)
from nvfp4.spec.format import SCALE_DTYPE
from nvfp4.spec.grouped import grouped_scales_shape
from nvfp4.spec.swizzle import scales_shape

Planned = tuple[Any, ...]
"""A plan function and its arguments."""

SM, N, K, EXPERTS = 90, 256, 512, 4
BYTES, INTS = torch.uint8, torch.int32


def _scales(shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(*shape, dtype=SCALE_DTYPE)


def _weight(*lead: int) -> tuple[Tensor, Tensor]:
    data = torch.zeros(*lead, N, K // 2, dtype=BYTES)
    return data, _scales((*lead, *scales_shape((N, K), "swizzled")))


def _activations(m: int) -> Packed:
    return Packed(torch.zeros(m, K // 2, dtype=BYTES), _scales(scales_shape((m, K), "swizzled")))


def _grouped_scales(rows: int) -> Tensor:
    return _scales(grouped_scales_shape(rows, EXPERTS, K))


def _quantize(m: int) -> Planned:
    call = Quantize(torch.zeros(m, K), torch.ones(1))
    return quantize.plan, call, _activations(m), SM


def _linear(m: int) -> Planned:
    x, out = torch.zeros(m, K, dtype=torch.bfloat16), torch.zeros(m, N, dtype=torch.bfloat16)
    return linear.plan, Linear(x, *_weight(), torch.ones(2), None, torch.zeros(N)), out, SM


def _weight_only(m: int) -> Planned:
    x, out = torch.zeros(m, K, dtype=torch.bfloat16), torch.zeros(m, N, dtype=torch.bfloat16)
    return weight_only_linear.plan, Linear(x, *_weight(), torch.ones(1)), out, SM


def _mm(m: int) -> Planned:
    (a, a_scales), (b, b_scales) = _activations(m), _weight()
    out = torch.zeros(m, N, dtype=torch.bfloat16)
    return mm.plan, Mm(a, b, a_scales, b_scales, torch.ones(1, 1), torch.ones(m)), out, SM


def _grouped(m: int) -> Planned:
    a, (b, b_scales) = torch.zeros(m, K // 2, dtype=BYTES), _weight(EXPERTS)
    alpha, offsets = torch.ones(EXPERTS, 1), torch.zeros(EXPERTS + 1, dtype=INTS)
    operands = a, b, _grouped_scales(m), b_scales, alpha, offsets, torch.ones(m)
    out = torch.zeros(m, N, dtype=torch.bfloat16)
    return grouped_mm.plan, GroupedMm(*operands, expected_rows=m), out, SM


def _route(m: int) -> Planned:
    ids, positions = torch.zeros(m, 2, dtype=INTS), torch.zeros(m, 2, dtype=INTS)
    return route.plan, ids, 0, torch.zeros(EXPERTS + 1, dtype=INTS), positions


def _dispatch(m: int) -> Planned:
    ids, positions = torch.zeros(m, 2, dtype=INTS), torch.zeros(m, 2, dtype=INTS)
    rows = torch.zeros(2 * m, K // 2, dtype=BYTES), _grouped_scales(2 * m), torch.zeros(2 * m)
    out = Dispatched(*rows, torch.zeros(EXPERTS + 1, dtype=INTS), positions)
    return moe_dispatch.plan, MoeDispatch(torch.zeros(m, K), ids, EXPERTS), out, SM


def _weight_only_moe(m: int) -> Planned:
    x, ids = torch.zeros(m, K, dtype=torch.bfloat16), torch.zeros(m, 2, dtype=INTS)
    w2 = torch.zeros(EXPERTS, K, N // 4, dtype=BYTES)
    w2_scales = _scales((EXPERTS, *scales_shape((K, N // 2), "swizzled")))
    alpha = torch.ones(EXPERTS, 2), torch.ones(EXPERTS, 1)
    weights = *_weight(EXPERTS), alpha[0], w2, w2_scales, alpha[1]
    call = Moe(x, torch.ones(m, 2), ids, *weights, w2_bias=torch.zeros(EXPERTS, K))
    return weight_only_moe.plan, call, torch.zeros(m, K, dtype=torch.bfloat16), SM


def _glu(m: int) -> Planned:
    call = GluQuantize(torch.zeros(m, 2 * K), swiglu_limit=7.0)
    return glu_quantize.plan, call, Quantized(*_activations(m), torch.zeros(m)), SM


FORMS = [_quantize, _linear, _weight_only, _mm, _grouped, _route, _dispatch, _glu, _weight_only_moe]


def _launches(planned: tuple[Any, ...]) -> tuple[Launch, ...]:
    plan, *operands = planned
    launches = plan(*operands)
    return (launches,) if isinstance(launches, Launch) else launches


def _tensors(planned: tuple[Any, ...]) -> list[Tensor]:
    """The tensors among the arguments, and in the calls and outputs among these."""
    flat = [x for part in planned for x in (part if isinstance(part, tuple) else (part,))]
    return [x for x in flat if isinstance(x, Tensor)]


def _extents(planned: tuple[Any, ...]) -> list[tuple[int, int]]:
    return [extent(x) for x in _tensors(planned)]


def _recorded(planned: tuple[Any, ...]) -> Program:
    found = record(_launches(planned), _tensors(planned))
    assert found is not None
    return found


@pytest.fixture
def called(monkeypatch) -> list[tuple[Any, ...]]:
    """The arguments of each launch, in place of launching."""
    calls: list[tuple[Any, ...]] = []

    def loaded(launch: Launch) -> tuple[Callable[..., None], tuple[Any, ...]]:
        return lambda *arguments: calls.append(arguments), launch.args

    monkeypatch.setattr(Launch, "loaded", loaded)
    return calls


def _run(remembered: Program, planned: tuple[Any, ...]) -> None:
    remembered.run([x.data_ptr() for x in _tensors(planned)], torch.device("cpu"))


@pytest.mark.parametrize("m", [1, 16, 64, 300, 5000])
@pytest.mark.parametrize("form", FORMS)
def test_other_operands_of_the_same_form(form, m, called):
    remembered = _recorded(form(m))
    others = form(m)
    _run(remembered, others)
    expected = _launches(others)
    assert len(called) == len(expected)
    mine = _extents(others)
    of_workspace: dict[int, int] = {}
    for got, launch in zip(called, expected, strict=True):
        assert len(got) == len(launch.args)
        for g, want in zip(got, launch.args, strict=True):
            if isinstance(want, TensorDescriptor):
                fields = vars(want).keys() - {"base"}
                assert all(vars(g)[name] == vars(want)[name] for name in fields)
                assert g.base.dtype == want.base.dtype
                g, want = g.base.data_ptr(), want.base
            if not isinstance(want, Tensor):
                assert g is want or g == want
            elif any(begin <= want.data_ptr() < end for begin, end in mine):
                assert g == want.data_ptr()
            else:  # as launches share it, and nothing else
                assert of_workspace.setdefault(want.data_ptr(), g) == g
                assert not any(begin <= g < end for begin, end in mine)
    assert len(set(of_workspace.values())) == len(of_workspace)


def test_a_workspace_has_room_for_all_that_the_plan_made(called):
    planned = _linear(64)
    launches = _launches(planned)
    remembered = record(launches, _tensors(planned))
    assert remembered is not None
    made = {
        x.data_ptr(): x.untyped_storage().nbytes()
        for launch in launches
        for x in (getattr(arg, "base", arg) for arg in launch.args)
        if isinstance(x, Tensor)
        and not any(begin <= x.data_ptr() < end for begin, end in _extents(planned))
    }
    assert len(made) > 1
    assert remembered.workspace >= sum(made.values())


def test_operands_that_overlap_are_not_told_apart():
    x = torch.zeros(64)
    assert record((), [x[:32], x[32:], x[:0]]) is not None
    assert record((), [x[:33], x[32:]]) is None
    assert record((), [x, x]) is None


def test_descriptors_are_kept_by_address():
    x = torch.zeros(128, 64, dtype=torch.float16)
    (_, multiply) = _launches(_linear(300))
    described = Described(next(a for a in multiply.args if isinstance(a, TensorDescriptor)))
    assert described.at(x.data_ptr()) is described.at(x.data_ptr())
    assert described.at(0).base.data_ptr() == 0
