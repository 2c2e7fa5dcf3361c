"""python -m nvfp4 convert, on small models of random weights: what is written, bit for bit; what a
crash leaves; how much memory it takes; and the models that are loaded from it.
"""

import copy
import json
import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import nvfp4

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytest.importorskip("gguf")

from checkpoint_files import MODELS, WORDS, save_model
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from nvfp4.checkpoints import FORMATS, MODELOPT, Checkpoint, load_model
from nvfp4.checkpoints.convert import Options, convert
from nvfp4.checkpoints.names import siblings_of
from nvfp4.checkpoints.skeleton import gating_of
from nvfp4.checkpoints.source import Source
from nvfp4.checkpoints.writer import ShardedWriter
from nvfp4.cli import app
from nvfp4.layers import Linear, MoE

formats = pytest.mark.parametrize("format", FORMATS)
# DeepSeek-V4, whose tensors have names of their own and are of many kinds, has a test of its own.
models = pytest.mark.parametrize("name", [name for name in MODELS if name != "deepseek-v4"])
PROMPT = "once upon a time in a small village by the sea there lived alice and the rabbit"


def _no_bar(title, total):
    return lambda: None


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Each of MODELS, made when first asked for."""
    made: dict[tuple, Path] = {}

    def of(name, **options):
        key = (name, *sorted(options.items()))
        if key not in made:
            torch.manual_seed(0)
            made[key] = save_model(tmp_path_factory.mktemp(name) / "source", name, **options)
        return made[key]

    return of


def _tensors(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def _shared_scale(weights, module):
    """amax / 2688 of all that engines multiply by as one."""
    together = [
        weights[f"{each}.weight"] for each in siblings_of(module) if f"{each}.weight" in weights
    ]
    return torch.stack([w.float().abs().amax() for w in together]).amax() / 2688


def _as_bytes(x):
    return x.reshape(-1).view(torch.uint8)


# what is written


@models
@formats
def test_bit_for_bit(tmp_path, source, name, format):
    """Each weight is what nvfp4.quantize_weight makes of it; the rest is what it was."""
    before = _tensors(source(name))
    summary = convert(source(name), tmp_path / "out", Options(format), _no_bar)
    checkpoint = Checkpoint(tmp_path / "out")
    assert len(checkpoint.modules) == summary.quantized_layers
    after = _tensors(tmp_path / "out")
    for module in checkpoint.modules:
        w = before.pop(f"{module}.weight")
        p = checkpoint.format.storable(_shared_scale(_tensors(source(name)), module))
        want, got = nvfp4.quantize_weight(w, global_scale=p), checkpoint.weight(module)
        assert got.global_scale == p
        assert torch.equal(got.data, want.data)
        assert torch.equal(_as_bytes(got.scales), _as_bytes(want.linear_scales()))
        assert checkpoint.scheme.quantizes(module)
    assert before and all(torch.equal(after[rest], tensor) for rest, tensor in before.items())
    left = {rest.rpartition(".")[0] for rest, tensor in before.items() if tensor.dim() > 1}
    assert left - {"model.embed_tokens"} == set(checkpoint.scheme.ignore) and "lm_head" in left
    routers = {"lm_head", "gate", "router", "shared_expert_gate"}
    known = (
        routers | {"experts"} if name == "gpt-oss" else routers
    )  # its experts are laid out otherwise
    assert {each.rpartition(".")[2] for each in checkpoint.scheme.ignore} <= known
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("the sea") == ["the", "sea"]
    assert (tmp_path / "out" / "hf_quant_config.json").exists() == (format == MODELOPT.name)


@formats
@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_experts_in_one_tensor_are_written_apart(tmp_path, source, name, format):
    """As engines know them: a model saved as transformers has it in memory gives the same files."""
    own = source(name, own_names=True)
    assert any(key.endswith("experts.gate_up_proj") for key in _tensors(own))
    convert(own, tmp_path / "own", Options(format), _no_bar)
    convert(source(name), tmp_path / "apart", Options(format), _no_bar)
    one, other = _tensors(tmp_path / "own"), _tensors(tmp_path / "apart")
    assert one.keys() == other.keys()
    assert all(torch.equal(_as_bytes(one[key]), _as_bytes(other[key])) for key in one)


def test_each_its_own_scale(tmp_path, source):
    before = _tensors(source("llama"))
    convert(source("llama"), tmp_path / "out", Options(separate_scales=True), _no_bar)
    checkpoint = Checkpoint(tmp_path / "out")
    for module in checkpoint.modules:
        p = nvfp4.global_scale(before[f"{module}.weight"])
        assert checkpoint.weight(module).global_scale == p


@pytest.mark.parametrize(
    "pattern, left",
    [
        ("*.o_proj", {"self_attn.o_proj"}),
        ("*.0.mlp.down_proj", {"mlp.down_proj"}),
        ("self_attn", {f"self_attn.{part}_proj" for part in "qkvo"}),
        # Engines multiply by q, k and v as one.
        ("*.k_proj", {f"self_attn.{part}_proj" for part in "qkv"}),
    ],
)
def test_excluded(tmp_path, source, pattern, left):
    result = CliRunner().invoke(
        app,
        ["convert", str(source("llama")), str(tmp_path / "out"), "--exclude", pattern, "--json"],
    )
    assert result.exit_code == 0, result.output
    ignored = json.loads(result.stdout)["left_in_floats"]
    assert {name.split(".", 3)[-1] for name in ignored} == left | {"lm_head"}
    checkpoint = Checkpoint(tmp_path / "out")
    assert not set(checkpoint.modules) & set(ignored)
    before, after = _tensors(source("llama")), _tensors(tmp_path / "out")
    assert all(torch.equal(before[f"{each}.weight"], after[f"{each}.weight"]) for each in ignored)


@pytest.mark.parametrize("name, left", [("llama", "mlp.down_proj"), ("mixtral", "experts")])
def test_k_that_is_not_a_multiple_of_16(tmp_path, source, name, left):
    """Such layers stay in floats, and with one expert's all of them; the model still runs."""
    convert(source(name, intermediate_size=40), tmp_path / "out", Options(), _no_bar)
    checkpoint = Checkpoint(tmp_path / "out")
    assert not any(left in module for module in checkpoint.modules)
    assert any(left in module for module in checkpoint.scheme.ignore)
    ids = torch.arange(1, 9)[None]
    model = AutoModelForCausalLM.from_pretrained(source(name, intermediate_size=40)).eval()
    with torch.no_grad():
        want = _by_hand(model, lambda path: left in path)(ids).logits
        assert torch.equal(load_model(tmp_path / "out")(ids).logits, want)


@formats
def test_shards(tmp_path, source, format):
    convert(source("qwen3-moe"), tmp_path / "one", Options(format), _no_bar)
    convert(source("qwen3-moe"), tmp_path / "many", Options(format, shard_size="20KB"), _no_bar)
    one, many = _tensors(tmp_path / "one"), _tensors(tmp_path / "many")
    assert one.keys() == many.keys()
    assert all(torch.equal(_as_bytes(one[key]), _as_bytes(many[key])) for key in one)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in one.values())
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert {file.name for file in files} == set(index["weight_map"].values()) and len(files) > 3
    for file in files:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
            assert {
                name for name, where in index["weight_map"].items() if where == file.name
            } == set(names)
            assert sum(opened.get_tensor(name).nbytes for name in names) <= 20_000
    assert Checkpoint(tmp_path / "many").modules


@pytest.mark.skipif(find_spec("compressed_tensors") is None, reason="needs compressed-tensors")
def test_compressed_tensors_reads_it_alike(tmp_path, source):
    """Its own decompression gives our values."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    convert(source("llama"), tmp_path / "out", Options("compressed-tensors"), _no_bar)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(config).config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(config["format"])
    checkpoint, tensors = Checkpoint(tmp_path / "out"), _tensors(tmp_path / "out")
    for module in checkpoint.modules:
        own = {
            name.rpartition(".")[2]: t
            for name, t in tensors.items()
            if name.startswith(f"{module}.")
        }
        got = compressor.decompress(own, scheme)["weight"]
        want = checkpoint.weight(module).dequantize(torch.float32)
        torch.testing.assert_close(got.float(), want, rtol=2**-7, atol=0)


# calibration


def _record(model, tokens):
    """What goes into every linear layer, by plain loops over experts."""
    seen: dict[str, float] = {}

    def see(path, x):
        seen[path] = max(seen.get(path, 0.0), x.abs().amax().item() if x.numel() else 0.0)

    def experts(path, module):
        def forward(x, ids, weights):
            out = torch.zeros_like(x)
            for t, (token, chosen) in enumerate(zip(x, ids, strict=True)):
                for j, e in enumerate(chosen.tolist()):
                    see(f"{path}", token)
                    gate, up = (module.gate_up_proj[e] @ token).chunk(2)
                    h = nn.functional.silu(gate) * up
                    see(f"{path}.{e}", h)
                    out[t] += weights[t, j] * (module.down_proj[e] @ h)
            return out

        return forward

    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, args, path=path: see(path, args[0]))
        elif path.endswith(".experts") and not hasattr(module, "gate_up_proj_bias"):
            module.forward = experts(path, module)
    with torch.no_grad():
        model(tokens)
    return seen


@models
@formats
def test_calibrated(tmp_path, source, name, format):
    """Input scales are amax / 2688 of what the text makes of each layer's input, each expert's."""
    text = tmp_path / "text.txt"
    text.write_text(PROMPT)
    convert(source(name), tmp_path / "out", Options(format, text=text), _no_bar)
    checkpoint = Checkpoint(tmp_path / "out")
    assert all(group.calibrated for group in checkpoint.scheme.groups)
    model = AutoModelForCausalLM.from_pretrained(source(name), dtype=torch.bfloat16)
    ids = AutoTokenizer.from_pretrained(source(name))(PROMPT, return_tensors="pt")["input_ids"]
    seen = _record(model, ids)
    for module in checkpoint.modules:
        path = module.replace("block_sparse_moe", "mlp")
        if ".experts." in module:
            all_of, _, rest = path.partition(".experts.")
            expert, leaf = rest.split(".")
            largest = max(v for k, v in seen.items() if k.startswith(f"{all_of}.experts."))
            if leaf in ("down_proj", "w2"):
                amax = seen.get(f"{all_of}.experts.{expert}", largest)
            else:
                amax = seen[f"{all_of}.experts"]
        else:
            amax = seen[path]
        p = checkpoint.input_global_scale(module)
        assert p is not None and p.item() == pytest.approx(amax / 2688, rel=2**-5), module


def test_an_expert_that_no_token_went_to(tmp_path, source):
    """It gets the largest scale of the others: any is better than none."""
    text = tmp_path / "text.txt"
    text.write_text("sea")
    convert(source("mixtral"), tmp_path / "out", Options(text=text), _no_bar)
    moe = Checkpoint(tmp_path / "out").moe("model.layers.0.block_sparse_moe.experts")
    scales = moe.h_global_scale
    assert scales.unique().numel() == 2 and (scales == scales.amax()).sum() == 3


# models


def _by_hand(model, stays=lambda path: False):
    """The model with its linear layers in NVFP4, made without a checkpoint, but those that stay."""
    weights = {
        f"{n}.weight": m.weight for n, m in model.named_modules() if isinstance(m, nn.Linear)
    }
    made = copy.deepcopy(model)
    for path, module in list(made.named_modules()):
        if stays(path):
            continue
        if path.endswith(".experts"):
            w13, w2 = [], []
            for both, down in zip(
                module.gate_up_proj.detach(), module.down_proj.detach(), strict=True
            ):
                p = both.float().abs().amax() / 2688
                w13.append(
                    nvfp4.concatenate(
                        [nvfp4.quantize_weight(half, global_scale=p) for half in both.chunk(2)]
                    )
                )
                w2.append(nvfp4.quantize_weight(down))
            moe = MoE(nvfp4.stack_experts(w13), nvfp4.stack_experts(w2))
            module.forward = lambda x, ids, weights, moe=moe: moe(x, weights, ids)
        elif isinstance(module, nn.Linear) and path != "lm_head" and not path.endswith("gate"):
            p = _shared_scale(weights, path)
            packed = nvfp4.quantize_weight(module.weight.detach(), global_scale=p)
            made.set_submodule(path, Linear(packed, module.bias))
    return made


@models
def test_loaded_model(tmp_path, source, name):
    """Its logits are those of the same layers made by hand, to the bit; and it writes."""
    convert(source(name), tmp_path / "out", Options(shard_size="30KB"), _no_bar)
    model = load_model(tmp_path / "out")
    ids = torch.randint(1, len(WORDS), (1, 12))
    float_model = AutoModelForCausalLM.from_pretrained(source(name), dtype=torch.bfloat16).eval()
    with torch.no_grad():
        by_hand = _by_hand(float_model, lambda path: name == "gpt-oss" and ".experts" in path)
        got, want = model(ids).logits, by_hand(ids).logits
        assert torch.equal(got, want) and not torch.equal(got, float_model(ids).logits)
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] <= 15
    layers = [m for m in model.modules() if isinstance(m, (Linear, MoE))]
    assert len(layers) >= 2 * 4


def test_deepseek_v4(tmp_path, source):
    """Names of its own (attn, ffn, w1, w3, w2), a limit in its experts, a grouped linear layer."""
    convert(source("deepseek-v4"), tmp_path / "out", Options(), _no_bar)
    checkpoint, before = Checkpoint(tmp_path / "out"), _tensors(source("deepseek-v4"))
    attention = {f"model.layers.1.attn.{leaf}" for leaf in ("wq_a", "wkv", "wq_b", "wo_b")}
    assert (
        attention < set(checkpoint.modules) and "model.layers.1.attn.wo_a" not in checkpoint.modules
    )
    assert {"head", "model.layers.1.ffn.gate", "model.layers.1.attn.wo_a"} < set(
        checkpoint.scheme.ignore
    )
    wq_a, wkv = (f"model.layers.1.attn.{leaf}" for leaf in ("wq_a", "wkv"))
    assert checkpoint.weight(wq_a).global_scale == checkpoint.weight(wkv).global_scale
    experts = "model.layers.1.ffn.experts"
    assert checkpoint.experts[experts] == 4
    got = checkpoint.weight(f"{experts}.2.w1").dequantize(torch.float32)
    want = before[f"{experts}.2.w1.weight"].float()
    assert nn.functional.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.99
    model, ids = load_model(tmp_path / "out"), torch.arange(1, 9)[None]
    (moe,) = [m for m in model.model.layers[1].mlp.experts.modules() if isinstance(m, MoE)]
    assert moe.swiglu_limit == model.config.swiglu_limit == 10.0
    original = AutoModelForCausalLM.from_pretrained(source("deepseek-v4"), dtype=torch.bfloat16)
    with torch.no_grad():
        close = nn.functional.cosine_similarity(model(ids).logits, original(ids).logits, dim=-1)
    assert close.mean() > 0.8


def _limited(gate, up, limit=7.0):
    return nn.functional.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)


@pytest.mark.parametrize(
    "function, gating",
    [
        (lambda gate, up: nn.functional.silu(gate) * up, (None, "silu")),
        (lambda gate, up: nn.functional.gelu(gate, approximate="tanh") * up, (None, "gelu_tanh")),
        (_limited, (7.0, "silu")),
        (lambda gate, up: nn.functional.gelu(gate) * up, None),
        (lambda gate, up: _limited(gate, up) + 1e-3 * gate, None),
        (lambda gate, up: nn.functional.silu(gate).clamp(max=7.0) * up.clamp(-7.0, 7.0), None),
    ],
)
def test_what_experts_compute_is_tried_out(function, gating):
    experts = SimpleNamespace(limit=7.0, _apply_gate=lambda both: function(*both.chunk(2, dim=-1)))
    if gating is None:
        with pytest.raises(ValueError, match="experts need silu or gelu_tanh .*, got another"):
            gating_of(experts)
    else:
        assert gating_of(experts) == gating


def test_tied_embeddings(tmp_path, source):
    folder = source("llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in _tensors(folder)
    convert(folder, tmp_path / "out", Options(), _no_bar)
    model = load_model(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.isfinite(model(torch.arange(1, 5)[None]).logits).all()


def test_a_tensor_of_another_model(tmp_path, source):
    convert(source("llama"), tmp_path / "out", Options(), _no_bar)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    for change, message in (
        ({"num_hidden_layers": 1}, "layers.1.* needs to be "),
        ({"num_hidden_layers": 3}, "needs a tensor for model.layers.2"),
        ({"intermediate_size": 112}, r"needs a layer \[.*112.*\], as the model has, got"),
    ):
        (tmp_path / "out" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            load_model(tmp_path / "out")


# GGUF


def _write_gguf(folder, path, arch):
    """The model of a Hugging Face folder as llama.cpp has it: its names, its order of q's and k's
    rows, a block's experts in three tensors; gated MLPs in 8 bits.
    """
    import gguf

    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_name("small")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(128)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    if arch is gguf.MODEL_ARCH.QWEN3MOE:
        writer.add_expert_count(config.get("num_experts", config.get("num_local_experts")))
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    words = ["<unk>", *WORDS[:-3], "t", "h", "th"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([1] * len(words))
    writer.add_token_merges(["t h"])
    for token in ("bos", "eos", "unk", "pad"):
        getattr(writer, f"add_{token}_token_id")(0)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for tensor, values in _stacked(_tensors(folder)).items():
        values = values.float()
        for leaf, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if leaf in tensor and arch is gguf.MODEL_ARCH.LLAMA:
                halves = values.view(count, 2, -1, values.shape[-1])
                values = halves.transpose(1, 2).reshape(values.shape)
        own = names.get_name(tensor.removesuffix(".weight")) + ".weight"
        kinds = gguf.GGMLQuantizationType
        kind = kinds.Q8_0 if "_proj" in tensor and values.shape[-1] % 32 == 0 else kinds.F32
        if "q_proj" in tensor:  # whose rows' order is looked at
            kind = kinds.F32
        writer.add_tensor(own, gguf.quantize(values.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _stacked(tensors):
    """Experts' layers in one tensor: experts.{e}.gate_proj -> experts.gate_proj [E, N, K]."""
    found: dict[str, list] = {}
    for name in sorted(tensors):
        found.setdefault(re.sub(r"experts\.\d+", "experts", name), []).append(tensors[name])
    return {name: torch.stack(t) if len(t) > 1 else t[0] for name, t in found.items()}


@pytest.mark.parametrize(
    "name, arch, options",
    [
        ("llama", "LLAMA", {}),
        # The one size that transformers takes a GGUF's experts to have.
        ("qwen3-moe", "QWEN3MOE", {"moe_intermediate_size": 768}),
    ],
)
def test_gguf(tmp_path, source, name, arch, options):
    """The same bits as from the model that transformers makes of the GGUF."""
    import gguf

    from nvfp4.checkpoints.float_model import load_float_model

    file = _write_gguf(source(name, **options), tmp_path / "small.gguf", gguf.MODEL_ARCH[arch])
    result = CliRunner().invoke(app, ["convert", str(file), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    model, _ = load_float_model(file, "cpu")
    original = _tensors(source(name, **options))["model.layers.1.self_attn.q_proj.weight"]
    assert torch.equal(model.model.layers[1].self_attn.q_proj.weight, original)
    model.save_pretrained(tmp_path / "floats")
    convert(tmp_path / "floats", tmp_path / "want", Options(), _no_bar)
    got, want = _tensors(tmp_path / "out"), _tensors(tmp_path / "want")
    assert got.keys() == want.keys()
    assert all(torch.equal(_as_bytes(got[key]), _as_bytes(want[key])) for key in want)
    assert load_model(tmp_path / "out").config.architectures == [type(model).__name__]
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("sea") > 0


@pytest.mark.parametrize("keep", [20, 500, -100])
def test_a_gguf_cut_short(tmp_path, source, keep):
    import gguf

    file = _write_gguf(source("llama"), tmp_path / "small.gguf", gguf.MODEL_ARCH.LLAMA)
    file.write_bytes(file.read_bytes()[:keep])
    result = CliRunner().invoke(app, ["convert", str(file), str(tmp_path / "out")])
    assert result.exit_code == 2 and f"{file} needs to be a whole GGUF file" in result.stderr
    assert _left(tmp_path) == ["small.gguf"]


# crashes, refusals, memory


def _left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_error_in_the_middle_leaves_nothing(tmp_path, source, monkeypatch):
    write, count = ShardedWriter.write, iter(range(100))

    def failing(self, name, tensor):
        if next(count) == 40:
            raise OSError("no space left on device")
        write(self, name, tensor)

    monkeypatch.setattr(ShardedWriter, "write", failing)
    args = ["convert", str(source("mixtral")), str(tmp_path / "out"), "--shard-size", "20KB"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2 and "no space left on device" in result.stderr
    assert _left(tmp_path) == []


KILLED = """
import os, signal, sys
from nvfp4.checkpoints.source import Source
from nvfp4.checkpoints.writer import ShardedWriter
from nvfp4.cli import app
write, count = ShardedWriter.write, iter(range(100))
def killed(self, name, tensor):
    if next(count) == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, name, tensor)
ShardedWriter.write = killed
app(sys.argv[1:])
"""


def test_a_kill_in_the_middle_leaves_nothing_that_loads(tmp_path, source):
    args = ["convert", str(source("mixtral")), str(tmp_path / "out"), "--shard-size", "20KB"]
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", KILLED, *args], cwd=root, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (partial,) = _left(tmp_path)
    assert partial.startswith(".out.") and partial.endswith(".partial")
    assert any((tmp_path / partial).glob("*.safetensors"))
    for load in (Checkpoint, load_model, AutoModelForCausalLM.from_pretrained):
        with pytest.raises((ValueError, OSError)):
            load(tmp_path / partial)
    assert CliRunner().invoke(app, args).exit_code == 0  # it is not in the way


def test_a_folder_that_is_there(tmp_path, source):
    args = ["convert", str(source("llama")), str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    assert CliRunner().invoke(app, args).exit_code == 0  # empty
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2 and "DST needs a new or empty folder" in result.stderr
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    "options, message",
    [
        (["--format", "gptq"], "--format needs 'modelopt' or 'compressed-tensors', got 'gptq'"),
        (["--exclude", "*.kproj"], "--exclude needs a linear layer's name, got '*.kproj'"),
        (["--exclude", "*"], "SRC needs linear layers to quantize, got none"),
        (["--shard-size", "big"], "--shard-size needs a size such as 5GB or 500MB, got 'big'"),
        (["--calibrate", "nowhere.txt"], "--calibrate needs a text file, got nowhere.txt"),
        (["--calibrate", os.devnull], "--calibrate needs a text"),
    ],
)
def test_refused_options(tmp_path, source, options, message):
    result = CliRunner().invoke(
        app, ["convert", str(source("llama")), str(tmp_path / "out"), *options]
    )
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert _left(tmp_path) == []


def _spoil(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors")


UP = "model.layers.1.mlp.up_proj.weight"
SPOILED = {
    "no folder": (lambda d: d.rename(d.with_name("moved")), "SRC needs an existing model folder"),
    "no config": (lambda d: (d / "config.json").unlink(), "SRC needs a folder with config.json"),
    "no weights": (
        lambda d: (d / "model.safetensors").unlink(),
        "model.safetensors needs to exist",
    ),
    "cut short": (
        lambda d: (d / "model.safetensors").write_bytes(
            (d / "model.safetensors").read_bytes()[:-1]
        ),
        "model.safetensors needs to be a whole safetensors file",
    ),
    "NaN": (
        lambda d: _spoil(d, lambda t: t[UP].view(-1)[5].fill_(float("nan"))),
        f"SRC: {UP} needs finite values, got NaN or Inf",
    ),
    "Inf": (
        lambda d: _spoil(d, lambda t: t[UP].view(-1)[5].fill_(float("-inf"))),
        f"SRC: {UP} needs finite values, got NaN or Inf",
    ),
    "float64": (
        lambda d: _spoil(d, lambda t: t.update({UP: t[UP].double()})),
        f"{UP} in",
    ),
}


@pytest.mark.parametrize("change, message", SPOILED.values(), ids=SPOILED)
def test_refused_sources(tmp_path, change, message):
    folder = save_model(tmp_path / "source", "llama")
    change(folder)
    result = CliRunner().invoke(app, ["convert", str(folder), str(tmp_path / "out")])
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert not [name for name in _left(tmp_path) if "out" in name]


def test_what_is_quantized_already(tmp_path, source):
    convert(source("llama"), tmp_path / "once", Options(), _no_bar)
    result = CliRunner().invoke(app, ["convert", str(tmp_path / "once"), str(tmp_path / "twice")])
    assert result.exit_code == 2 and "needs a model in floats, got one quantized" in result.stderr
    assert _left(tmp_path) == ["once"]


def _status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_is_bounded_by_the_largest_tensor(tmp_path, source, monkeypatch):
    """A model of 8 layers of 32 MB, none of its tensors above 8: the process's own memory (not the
    mapped file's pages, which the system takes back) grows by a few tensors.
    """
    sizes = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8)
    folder = save_model(tmp_path / "source", "llama", initializer_range=0.02, **sizes)
    convert(source("llama"), tmp_path / "first", Options(), _no_bar)  # what is imported once
    write, seen = ShardedWriter.write, []

    def watched(self, name, tensor):
        seen.append(_own_memory())
        write(self, name, tensor)

    monkeypatch.setattr(ShardedWriter, "write", watched)
    before, largest = _own_memory(), 2 * 1024 * 4096
    summary = convert(folder, tmp_path / "out", Options(), _no_bar)
    assert summary.bytes_before > 28 * largest
    assert max(seen) - before < 6 * largest, f"{(max(seen) - before) / largest:.1f} tensors"
    # That a converter which keeps what it reads would be noticed:
    read, kept, before = Source.read, [], _own_memory()
    monkeypatch.setattr(Source, "read", lambda *args: kept.append(read(*args).clone()) or kept[-1])
    convert(folder, tmp_path / "again", Options(), _no_bar)
    assert _own_memory() - before > 12 * largest


def _own_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
