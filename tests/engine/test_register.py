"""What the plugin takes over, and which vLLM it refuses."""

import pytest
import torch

import nvfp4.integrations.vllm as plugin
from nvfp4.backends.environment import BATCH_INVARIANT, VLLM_PLUGIN, may_split_k
from nvfp4.backends.workload import Workload
from nvfp4.checkpoints import COMPRESSED_TENSORS, MODELOPT, Group, Scheme
from nvfp4.integrations.vllm import QUANTIZATION, adopt_settings, register, untested

SCHEMES = [
    Scheme(format, (group,), ("lm_head",))
    for format in (MODELOPT, COMPRESSED_TENSORS)
    for group in (Group(), Group(calibrated=False, activation="bf16"))
]


@pytest.fixture(scope="module")
def config():
    from vllm.model_executor.layers.quantization import get_quantization_config

    register()
    return get_quantization_config(QUANTIZATION)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.format.name}-{s.groups[0]}")
def test_nvfp4_checkpoints_are_taken_over(scheme, config):
    for each in filter(None, (scheme.config(), scheme.hf_quant_config())):
        assert config.override_quantization_method(each, None) == QUANTIZATION
        assert config.override_quantization_method(each, QUANTIZATION) == QUANTIZATION
        assert config.override_quantization_method(each, "modelopt_fp4") is None
        assert config.from_config(each).scheme == scheme


@pytest.mark.parametrize(
    "other",
    [
        {"quant_method": "fp8"},
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
    ],
)
def test_other_checkpoints_are_left_alone(other, config):
    assert config.override_quantization_method(other, None) is None


MIXED = {
    "quant_method": "modelopt",
    "quant_algo": "MIXED_PRECISION",
    "quantized_layers": {
        "model.layers.0.mlp.down_proj": {"quant_algo": "NVFP4", "group_size": 16},
        "model.layers.0.self_attn.o_proj": {"quant_algo": "FP8"},
    },
}
NUMBERS = {"num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group"}
EIGHT = {"num_bits": 8, "type": "float", "strategy": "channel"}
COMPRESSED_MIXED = {
    "quant_method": "compressed-tensors",
    "format": "mixed-precision",
    "ignore": [],
    "config_groups": {
        "group_0": {
            "targets": ["re:.*mlp.*"],
            "format": "nvfp4-pack-quantized",
            "weights": NUMBERS,
            "input_activations": None,
        },
        "group_1": {
            "targets": ["re:.*self_attn.*"],
            "format": "float-quantized",
            "weights": EIGHT,
            "input_activations": None,
        },
    },
}


@pytest.mark.parametrize("mixed", [MIXED, COMPRESSED_MIXED], ids=["modelopt", "compressed"])
def test_other_formats_of_a_mixed_checkpoint_are_vllms(mixed, config):
    """NVFP4 layers are taken over, and vLLM's own configuration has the others."""
    assert config.override_quantization_method(mixed, None) == QUANTIZATION
    made = config.from_config(mixed)
    assert made.scheme.quantizes("model.layers.0.mlp.down_proj")
    assert made.scheme.is_other("model.layers.0.self_attn.o_proj")
    assert made.rest is not None and made.rest.get_name() in (
        "modelopt_mixed",
        "compressed-tensors",
    )
    assert config.from_config(SCHEMES[0].config()).rest is None


@pytest.mark.parametrize("version", ["0.28.1", "0.32.0", "0.32.1", "0.32.0+cpu"])
def test_a_tested_version(version):
    assert untested(version) == ""


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "1.0", "0.3.2", "dev"])
def test_an_untested_version_was_refused(version, monkeypatch):
    """The plugin warns once, and is loaded."""
    import vllm

    said, added = [], []
    monkeypatch.setattr(vllm, "__version__", version)
    monkeypatch.setattr(plugin, "_add", lambda: added.append(True))
    monkeypatch.setattr(plugin.logger, "warning", said.append)
    register.__wrapped__()
    assert said == [untested(version)] and added == [True]
    assert f"not with {version}" in said[0]


def test_vllm_starts_where_the_plugin_cannot_be_loaded(monkeypatch):
    from vllm.model_executor.layers import quantization

    said = []
    monkeypatch.delattr(quantization, "register_quantization_config")
    monkeypatch.setattr(plugin.logger, "error", lambda *args: said.append(args))
    register.__wrapped__()
    assert "stays out of the way" in said[0][0]


def test_a_variable_turns_the_plugin_off(monkeypatch):
    monkeypatch.setenv(VLLM_PLUGIN, "0")
    monkeypatch.setattr(plugin, "_add", None)
    register.__wrapped__()


def test_batch_invariance_is_asked_of_the_ops_too(monkeypatch):
    monkeypatch.setenv(BATCH_INVARIANT, "")
    monkeypatch.delenv(BATCH_INVARIANT)
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "0")
    adopt_settings()
    assert may_split_k()
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    adopt_settings()
    assert not may_split_k()


class _Method:
    """A method whose layers are all alike, and which counts them."""

    def workloads(self, layer):
        return (Workload(128, 64, 16, calibrated=layer.training),)


def test_each_layer_started_processes_that_compile(monkeypatch):
    """On a GPU, the kernels of all layers are compiled together; here nothing compiles."""
    from nvfp4.integrations.vllm import warmup

    compiled = []
    monkeypatch.setattr(warmup, "compiling", lambda works, _: compiled.append(works) or iter(()))
    layers = [torch.nn.Identity(), torch.nn.Identity(), torch.nn.Identity().eval()]
    for layer in layers:
        warmup.plan(_Method(), layer)
    warmup.compile_planned(torch.device("cuda"))
    warmup.compile_planned(torch.device("cuda"))
    assert compiled == [
        [Workload(128, 64, 16, calibrated=True), Workload(128, 64, 16, calibrated=False)],
        [],
    ]


def test_every_layer_ran_the_calls_of_the_first_one():
    from nvfp4.integrations.vllm import warmup

    ran = []
    for form in ("a test's", "a test's", "another"):
        warmup.run_first(torch.device("cuda"), form, lambda form=form: ran.append(form))
    warmup.run_first(torch.device("cpu"), "on a CPU", lambda: ran.append("on a CPU"))
    assert ran == ["a test's", "another"]
