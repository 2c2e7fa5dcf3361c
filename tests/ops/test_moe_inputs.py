"""What the ops of a mixture of experts say to bad input: which argument, its need, what it got."""

from collections.abc import Callable

import pytest
import torch
from arguments import arguments
from cases import skip_if_it_cannot

import nvfp4
from nvfp4.backends.triton import grouped_mm
from nvfp4.backends.triton.gemm.config import choose_grouped_config

OPS = torch.ops.nvfp4
Change = Callable[[torch.Tensor], object]


def _falls_by_2_31(offsets: torch.Tensor) -> torch.Tensor:
    """Offsets with a fall that int32 cannot hold: the difference wraps to a positive number."""
    return offsets.index_fill(0, torch.tensor([3], device=offsets.device), -(2**31))


CASES: list[tuple[str, int, Change, str]] = [
    ("glu_quantize", 0, lambda x: x[:, :48], "gate_up needs a last dimension .* multiple of 32"),
    ("glu_quantize", 1, lambda _: torch.ones(4), r"global_scale needs shape \[\], \[1\] or \[6\]"),
    ("glu_quantize", 2, lambda _: torch.zeros(3), "offsets needs dtype int32, got float32"),
    ("glu_quantize", 3, lambda _: 0.0, "swiglu_limit needs a finite positive number"),
    (
        "glu_quantize",
        6,
        lambda _: "relu",
        "activation needs one of 'silu', 'gelu_tanh', 'swiglu_oai', 'relu2', got 'relu'",
    ),
    ("grouped_mm", 0, lambda a: a[None], "a needs 2 dimensions"),
    ("grouped_mm", 1, lambda b: b[0], "b needs 3 dimensions"),
    ("grouped_mm", 1, lambda b: b[..., :40], "b needs a's K = 96"),
    ("grouped_mm", 2, lambda s: s[:128], r"a_scales needs the grouped shape \[640, 8\]"),
    ("grouped_mm", 3, lambda s: s.view(-1, s.shape[-1]), "b_scales needs shape .*quantize_experts"),
    ("grouped_mm", 3, lambda s: s.view(torch.uint8), "b_scales needs dtype float8_e4m3fn"),
    ("grouped_mm", 4, lambda p: p[:3], r"alpha needs shape \[5\] or \[5, S\]"),
    ("grouped_mm", 4, lambda p: p.repeat(1, 3)[:, :5], "alpha needs a number of segments"),
    ("grouped_mm", 5, lambda o: o.long(), "offsets needs dtype int32, got int64"),
    ("grouped_mm", 5, lambda o: o[:-1], r"offsets needs shape \[6\]"),
    ("grouped_mm", 5, lambda o: o.flip(0), "offsets needs values from 0 up that do not fall"),
    ("grouped_mm", 5, lambda o: o + 1, "offsets needs values from 0 up"),
    ("grouped_mm", 5, lambda o: o * 99, "offsets needs values .* at most 12"),
    ("grouped_mm", 5, lambda o: _falls_by_2_31(o), "offsets needs values from 0 up"),
    ("grouped_mm", 7, lambda b: b[0], r"bias needs shape \[5, 64\]"),
    ("grouped_mm", 8, lambda _: torch.int8, "out_dtype needs one of"),
    ("grouped_mm_glu_quantize", 8, lambda _: torch.ones(3), r"global_scale needs .* \[5\]"),
    ("grouped_mm_glu_quantize", 7, lambda _: torch.ones(5, 32), r"bias needs shape \[5, 64\]"),
    ("grouped_mm_glu_quantize", 9, lambda _: -1.0, "swiglu_limit needs"),
    ("grouped_mm_glu_quantize", 12, lambda _: "", "scale_rule needs"),
    ("grouped_mm_glu_quantize", 13, lambda _: "", "activation needs"),
    ("moe_dispatch", 0, lambda x: x[None], "x needs 2 dimensions"),
    ("moe_dispatch", 1, lambda i: i.short(), "topk_ids needs dtype int32 or int64, got int16"),
    ("moe_dispatch", 1, lambda i: i[:4], r"topk_ids needs shape \[6, top_k\]"),
    ("moe_dispatch", 1, lambda i: i[:, :0], "topk_ids needs shape"),
    ("moe_dispatch", 2, lambda _: 0, "num_experts needs 1 to 512 experts, got 0"),
    ("moe_dispatch", 2, lambda _: 513, "num_experts needs 1 to 512 experts, got 513"),
    ("moe_dispatch", 3, lambda _: torch.ones(6), r"x_global_scale needs shape \[\], \[1\]"),
    ("moe_dispatch", 3, lambda _: torch.tensor(0.0), "x_global_scale needs finite positive values"),
    ("moe_combine", 0, lambda y: y[0], "y needs 2 dimensions"),
    ("moe_combine", 1, lambda w: w[:, :1], r"topk_weights needs shape \[6, 2\]"),
    ("moe_combine", 2, lambda p: p.long(), "positions needs dtype int32"),
    ("moe_combine", 2, lambda p: p[:5], r"positions needs shape \[M, top_k\] with M \* top_k = 12"),
    ("moe", 0, lambda x: x[:, :80], "w13 needs x's K = 80"),
    ("moe", 1, lambda w: w[:, :1], r"topk_weights needs shape \[6, 2\]"),
    ("moe", 2, lambda i: i.float(), "topk_ids needs dtype"),
    ("moe", 3, lambda w: w[:, :62], "w13_scales needs shape|w13 needs N = 2I"),
    ("moe", 5, lambda p: p[:, :0], "w13_global_scale needs a number of segments"),
    ("moe", 6, lambda w: w[:4], "w2_scales needs shape"),
    ("moe", 8, lambda p: p.double(), "w2_global_scale needs dtype float32"),
    ("moe", 10, lambda _: torch.ones(3), r"h_global_scale needs shape \[\], \[1\] or \[5\]"),
    ("moe", 10, lambda p: p * float("nan"), "h_global_scale needs finite positive values, got nan"),
    ("moe", 11, lambda b: b[0], r"w13_bias needs shape \[5, 64\]"),
    ("moe", 12, lambda b: b.int(), "w2_bias needs dtype"),
    ("moe", 15, lambda _: float("inf"), "swiglu_limit needs a finite positive number"),
    ("swiglu_mlp", 0, lambda x: x[:, :32], "w13 needs x's K = 32"),
    ("swiglu_mlp", 4, lambda w: w[:, :8], "w2_scales needs|w13 needs N = 2I"),
    ("swiglu_mlp", 8, lambda _: torch.ones(6), r"h_global_scale needs shape \[\], \[1\], got"),
    ("swiglu_mlp", 9, lambda b: b[:32], r"w13_bias needs shape \[64\]"),
]


@pytest.mark.parametrize("name, index, change, message", CASES)
def test_bad_input(name, index, change, message):
    args = arguments(name, 6, "cpu")
    changed = (*args[:index], change(args[index]), *args[index + 1 :])
    with pytest.raises(ValueError, match=rf"nvfp4::{name}: ({message})"):
        getattr(OPS, name)(*changed)


def test_an_activation_that_there_is_not():
    args = arguments("moe", 6, "cpu")
    with pytest.raises(ValueError, match="activation needs one of 'silu', .*, got 'tanh'"):
        OPS.moe(*args, activation="tanh")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"activation": "relu2"}, "swiglu_limit needs to be None with activation='relu2', got 7.0"),
        (
            {"activation": "relu2", "swiglu_limit": None},
            r"w13 needs N = I = 32 \(w2 has K = I = 32",
        ),
        ({"activation_format": "bf16"}, "h_global_scale needs to be None with activation_format="),
        ({"activation_format": "fp8"}, "activation_format needs 'nvfp4' or 'bf16', got 'fp8'"),
    ],
)
def test_options_of_moe_that_exclude_each_other(options, message):
    args = arguments("moe", 6, "cpu")
    with pytest.raises(ValueError, match=message):
        OPS.moe(*args[:15], **{"swiglu_limit": 7.0, **options})


def _of_global_experts(count: int) -> tuple:
    args = arguments("moe", 6, "cpu")
    return *args[:14], count, *args[15:]


def test_fewer_experts_in_all_than_here():
    need = "global_num_experts needs 0, or at least the 5 experts that are here, got 4"
    with pytest.raises(ValueError, match=need):
        OPS.moe(*_of_global_experts(4))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("of, expected", [(0, 12), (5, 12), (15, 4)])
def test_tiles_are_chosen_for_a_rank_s_share_of_the_rows(monkeypatch, of, expected):
    skip_if_it_cannot("triton", "cpu")
    seen = []

    def choose(rows: int, *rest: int):
        seen.append(rows)
        return choose_grouped_config(rows, *rest)

    monkeypatch.setattr(grouped_mm, "choose_grouped_config", choose)
    OPS.moe(*_of_global_experts(of), backend="triton")
    assert seen == [expected, expected]


def test_a_backend_that_cannot():
    args = arguments("moe_dispatch", 6, "cpu")
    with pytest.raises(ValueError, match="backend 'cutedsl' cannot run this on cpu"):
        OPS.moe_dispatch(*args, backend="cutedsl")


def test_weights_that_do_not_belong_together():
    w = nvfp4.quantize(torch.randn(32, 64))
    with pytest.raises(ValueError, match="stack_experts: experts needs weights of one shape"):
        nvfp4.stack_experts([w, nvfp4.quantize(torch.randn(48, 64))])
    with pytest.raises(ValueError, match="at least one, got"):
        nvfp4.stack_experts([])
    with pytest.raises(ValueError, match=r"w needs shape \[E, N, K\] with N a multiple of 3"):
        nvfp4.quantize_experts(torch.randn(2, 32, 64), segments=3)


def test_expert_weights_can_be_sliced_moved_pickled():
    import pickle

    w = nvfp4.quantize_experts(torch.randn(4, 64, 48), segments=2)
    assert w.shape == (4, 64, 48) and w.nbytes == w.data.nbytes + w.scales.nbytes + 32
    part, twin = w.slice(1, 2), pickle.loads(pickle.dumps(w))
    assert torch.equal(part[0].data, w[1].data) and torch.equal(twin.data, w.data)
    assert torch.equal(twin.scales.view(torch.uint8), w.scales.view(torch.uint8))
    assert w.to("meta").data.device.type == "meta"
