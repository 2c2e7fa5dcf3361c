"""What convert leaves in floats is in the ignore list and in the summary, and the result loads."""

import re
import shutil
import warnings

import pytest
import torch
import transformers
from checkpoint_files import SMALL
from conversion import as_bytes, formats, no_bar, tensors_of
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import nvfp4
from nvfp4.checkpoints import Checkpoint, load_model
from nvfp4.checkpoints.convert import Options, convert
from nvfp4.checkpoints.inspect import inspect
from nvfp4.cli import app
from nvfp4.layers import Linear, MoE

MLA = dict(
    q_lora_rank=32, kv_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=16,
    num_key_value_heads=4,
)  # fmt: skip
STACKED = dict(
    intermediate_size=128, head_dim=16, num_local_experts=8, num_experts_per_tok=2, **SMALL
)
OTHERS = {
    # a class of transformers: its configuration
    "NemotronH": SMALL
    | dict(
        num_hidden_layers=4, layers_block_type=["mamba", "moe", "attention", "mlp"],
        intermediate_size=96, head_dim=16, mamba_num_heads=4, n_groups=1, mamba_head_dim=32,
        ssm_state_size=16, n_routed_experts=4, moe_intermediate_size=48, num_experts_per_tok=2,
        moe_shared_expert_intermediate_size=96, n_group=2, topk_group=1,
    ),
    "LongcatFlash": SMALL
    | dict(
        intermediate_size=96, head_dim=16, ffn_hidden_size=96, expert_ffn_hidden_size=48,
        zero_expert_num=2, moe_topk=2, num_layers=1, n_routed_experts=4, **MLA,
    ),
    "GptOss": STACKED,
}  # fmt: skip


def _save(folder, kind):
    config = getattr(transformers, f"{kind}Config")(**OTHERS[kind])
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    return folder


def _claimed(checkpoint):
    """The layers in floats that the configuration calls quantized. Engines ask for a stack of
    experts [E, N, K] by the module that it is in.
    """
    left = set()
    for name in checkpoint.files.names:
        module, _, leaf = name.rpartition(".")
        dim = len(checkpoint.files.shape(name))
        if checkpoint.files.dtype(name) != "BF16" or re.search("embed|conv1d", name):
            continue
        if leaf == "weight" and dim > 1:
            left.add(module)
        if dim == 3:
            left.add(module.rpartition(".")[0] if leaf == "weight" else module)
    return sorted(each for each in left if checkpoint.scheme.quantizes(each))


@formats
@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.filterwarnings("ignore:.*stay in floats")
def test_experts_left_in_floats_are_ignored_and_load(tmp_path, kind, format):
    floats = _save(tmp_path / "floats", kind)
    exclude = ("experts",) if kind == "GptOss" else ()
    summary = convert(floats, tmp_path / "out", Options(format, exclude), no_bar)
    checkpoint = Checkpoint(tmp_path / "out")
    assert _claimed(checkpoint) == [] and checkpoint.modules
    assert set(summary.left_in_floats) == set(checkpoint.scheme.ignore)
    assert all(checkpoint.scheme.quantizes(module) for module in checkpoint.modules)
    found = inspect(tmp_path / "out", no_bar).findings
    assert [each for each in found if "the configuration" in each.what] == []
    theirs = AutoModelForCausalLM.from_pretrained(floats, dtype=torch.bfloat16).state_dict()
    model = load_model(tmp_path / "out")
    packed = [p for p, m in model.named_modules() if isinstance(m, Linear | MoE)]
    for name, tensor in model.state_dict().items():
        if not any(name.startswith(f"{path}.") for path in packed):
            assert torch.equal(tensor, theirs[name]), name
    assert torch.isfinite(model(torch.arange(1, 9)[None]).logits).all()


def test_most_of_the_bytes_in_floats_is_a_warning(tmp_path, source):
    floats = _save(tmp_path / "floats", "GptOss")
    experts = r"9\d% of the model's bytes stay in floats, .* in model.layers.\*.mlp.experts"
    with pytest.warns(UserWarning, match=experts):
        summary = convert(floats, tmp_path / "out", Options(exclude=("experts",)), no_bar)
    left = sum(t.nbytes for n, t in tensors_of(floats).items() if "mlp" in n)
    head = tensors_of(floats)["model.embed_tokens.weight"].nbytes
    assert left <= summary.bytes_left_in_floats <= left + head
    arguments = ["convert", str(floats), str(tmp_path / "cli"), "--json", "--exclude", "experts"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "mlp.experts" in result.stdout
    (line,) = [line for line in result.stderr.splitlines() if "stay in floats" in line]
    assert line.startswith("warning: ") and "mlp.experts" in line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(source("llama"), tmp_path / "llama", Options(), no_bar)


@pytest.mark.parametrize("format", ["modelopt", "compressed-tensors"])
def test_layers_that_transformers_passes_over(tmp_path, format):
    """Multi-token prediction: such layers are copied and ignored; in NVFP4 they are passed over."""
    config = dict(
        intermediate_size=96, head_dim=16, moe_intermediate_size=48, num_experts=4,
        num_experts_per_tok=2, shared_expert_intermediate_size=48, linear_num_value_heads=4,
        linear_num_key_heads=2, linear_key_head_dim=16, linear_value_head_dim=16,
        layer_types=["linear_attention", "full_attention"], **SMALL,
    )  # fmt: skip
    model = transformers.Qwen3NextForCausalLM(transformers.Qwen3NextConfig(**config)).bfloat16()
    model.save_pretrained(tmp_path / "floats")
    tensors = tensors_of(tmp_path / "floats")
    own = {n: t for n, t in tensors.items() if n.startswith("model.layers.1.")}
    extra = {n.replace("model.layers.1.", "mtp.layers.0."): t.clone() for n, t in own.items()}
    save_file(tensors | extra, tmp_path / "floats" / "model.safetensors", {"format": "pt"})
    convert(tmp_path / "floats", tmp_path / "out", Options(format), no_bar)
    checkpoint = Checkpoint(tmp_path / "out")
    assert _claimed(checkpoint) == []
    assert not [module for module in checkpoint.modules if module.startswith("mtp")]
    load_model(tmp_path / "out", activation="nvfp4")
    tensors = tensors_of(tmp_path / "out")
    names = [f"mtp.layers.0.mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")]
    for part in ("gate", "up", "down"):
        names += [f"mtp.layers.0.mlp.experts.{e}.{part}_proj" for e in range(4)]
    for name in names:
        q = nvfp4.quantize(tensors.pop(f"{name}.weight"), scale_layout="linear")
        stored = checkpoint.format
        tensors[f"{name}.{stored.data}"], tensors[f"{name}.{stored.scales}"] = q.data, q.scales
        tensors[f"{name}.{stored.global_scale}"] = q.global_scale.clone()
    save_file(tensors, tmp_path / "out" / "model.safetensors", {"format": "pt"})
    load_model(tmp_path / "out", activation="nvfp4")


NATIVE = {
    "model.embed_tokens.weight": "embed.weight",
    "model.hc_head.hc_base": "hc_head_base",
    "model.hc_head.hc_fn": "hc_head_fn",
    "model.hc_head.hc_scale": "hc_head_scale",
}


def _native(name):
    return NATIVE.get(name, name.removeprefix("model."))


def test_native_names_without_a_prefix(tmp_path, source):
    """DeepSeek-V4's own file: its experts are quantized, to the bits of the prefixed one."""
    shutil.copytree(source("deepseek-v4"), tmp_path / "native")
    before = tensors_of(source("deepseek-v4"))
    native = {_native(name): tensor for name, tensor in before.items()}
    save_file(native, tmp_path / "native" / "model.safetensors", {"format": "pt"})
    convert(tmp_path / "native", tmp_path / "out", Options(), no_bar)
    convert(source("deepseek-v4"), tmp_path / "prefixed", Options(), no_bar)
    checkpoint = Checkpoint(tmp_path / "out")
    assert checkpoint.experts == {f"layers.{i}.ffn.experts": 4 for i in range(3)}
    assert {"head", "layers.1.ffn.gate", "layers.1.attn.wo_a"} < set(checkpoint.scheme.ignore)
    assert _claimed(checkpoint) == [] and not inspect(tmp_path / "out", no_bar).damaged
    got, want = tensors_of(tmp_path / "out"), tensors_of(tmp_path / "prefixed")
    assert got.keys() == {_native(name) for name in want}
    assert all(torch.equal(as_bytes(got[_native(n)]), as_bytes(want[n])) for n in want)
    ids = torch.arange(1, 9)[None]
    one, other = (
        load_model(tmp_path / folder, activation="nvfp4")(ids).logits
        for folder in ("out", "prefixed")
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["DeepseekV32", "GlmMoeDsa"])
def test_what_a_class_keeps_in_float32_is_not_quantized(tmp_path, kind):
    """The indexer asks its weights_proj for its dtype, which a packed weight has not."""
    config = SMALL | MLA | dict(
        intermediate_size=96, moe_intermediate_size=48, n_routed_experts=4, num_experts_per_tok=2,
        n_group=2, topk_group=1, index_head_dim=32, index_n_heads=2, index_topk=32,
        mlp_layer_types=["dense", "sparse"],
    )  # fmt: skip
    made = getattr(transformers, f"{kind}Config")(**config)
    getattr(transformers, f"{kind}ForCausalLM")(made).bfloat16().save_pretrained(tmp_path / "src")
    summary = convert(tmp_path / "src", tmp_path / "out", Options(), no_bar)
    assert "model.layers.0.self_attn.indexer.weights_proj" in summary.left_in_floats
    model = load_model(tmp_path / "out", activation="nvfp4")
    assert torch.isfinite(model(torch.arange(1, 9)[None]).logits).all()
    assert isinstance(model.model.layers[0].self_attn.indexer.weights_proj, nn.Linear)
