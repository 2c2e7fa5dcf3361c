"""nvfp4.emulate: CPU tensors stand for tensors of a GPU."""

import pytest
import torch
from cases import activations, same_bits

import nvfp4
from nvfp4.backends.target import Target, target_of

CPU = torch.device("cpu")


def test_a_cpu_is_the_gpu_within_the_block_alone():
    assert target_of(CPU) == Target("cpu")
    with nvfp4.emulate(sm=89):
        assert target_of(CPU) == Target("cpu", 89)
        with nvfp4.emulate(sm=100):
            assert str(target_of(CPU)) == "emulated sm_100"
        assert target_of(CPU).sm == 89
    assert target_of(CPU) == Target("cpu")


def test_an_unknown_architecture_is_refused():
    with (
        pytest.raises(ValueError, match="nvfp4.emulate: sm needs one of 80, .*, got 75"),
        nvfp4.emulate(sm=75),
    ):
        pass


def test_triton_is_emulated_by_name_only():
    with nvfp4.emulate(sm=89):
        explanation = nvfp4.explain("quantize", "cpu")
        named = nvfp4.explain("quantize", "cpu", "triton")
    assert explanation.backend == "reference" and named.backend == "triton"
    verdict = "triton: by name only: emulated: sm_89 code run by the CPU, slowly"
    assert verdict in str(explanation)


def test_cutedsl_is_refused_where_the_architecture_has_no_tcgen05():
    with nvfp4.emulate(sm=120):
        report = str(nvfp4.explain("mm", "cpu"))
    assert (
        "cutedsl: needs sm_100 or sm_103, or the CPU to emulate it, got emulated sm_120" in report
    )


@pytest.mark.emulated
@pytest.mark.compiles
def test_quantize_runs_on_sm_80():
    """Whether or not this process interprets Triton's kernels."""
    x, p = activations(5, 64), torch.tensor(0.01)
    want = torch.ops.nvfp4.quantize(x, p, backend="reference")
    with nvfp4.emulate(sm=80):
        got = torch.ops.nvfp4.quantize(x, p, backend="triton")
    for mine, theirs in zip(got, want, strict=True):
        same_bits(mine, theirs)
