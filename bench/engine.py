"""Decoding and prefill in vLLM on one GPU: this package's plugin beside vLLM's own kernels.

    python -m nvfp4.bench.engine write FOLDER           # random weights of Llama-3.1-8B's sizes
    python -m nvfp4.bench.engine measure FOLDER RESULT  # RESULT.json and RESULT.md

All engines start side by side, each in a process of its own. They are then measured in turns, so
that none is measured while another works, and each round measures all of them. vLLM and this
package must be installed in one environment.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from select import select
from subprocess import PIPE
from typing import Any, NamedTuple

import torch
import typer

HIDDEN, INTERMEDIATE, KV, LAYERS, VOCABULARY = 4096, 14336, 1024, 32, 128256
SEQUENCES = (1, 4, 16, 64, 128, 256)
PROMPT, WRITTEN, PREFILL = 32, 128, (8, 1024)
"""Tokens of a prompt and written after it; prompts and their tokens where none is written."""

FLOATS, PACKED = "bf16", "nvfp4"
"""The folders of the two checkpoints."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Engine(NamedTuple):
    """One competitor: its checkpoint, and options of vllm.LLM."""

    folder: str
    options: dict[str, Any]


ENGINES = {
    "bf16": Engine(FLOATS, {}),
    "nvfp4 (this plugin)": Engine(PACKED, {"quantization": "nvfp4"}),
    "Marlin": Engine(PACKED, {"quantization": "modelopt_fp4", "linear_backend": "marlin"}),
    "humming": Engine(PACKED, {"quantization": "modelopt_fp4", "linear_backend": "humming"}),
}
OURS = "nvfp4 (this plugin)"


# The checkpoints.


@app.command()
def write(folder: Path, layers: int = LAYERS) -> None:
    """Write the same random model in NVFP4 (ModelOpt's format, W4A4) and in bf16.

    All layers have the same weights: speed does not depend on them.
    """
    from safetensors.torch import save_file

    import nvfp4

    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    linears = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KV, HIDDEN),
        "self_attn.v_proj": (KV, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    floats, packed = {}, {}
    for name, (n, k) in linears.items():
        w = torch.randn(n, k, device=device, generator=generator).bfloat16() * k**-0.5
        p = torch.tensor(6 * k**-0.5 / 2688, device=device)
        q = nvfp4.quantize(w, p, "linear")
        floats[f"{name}.weight"] = nvfp4.dequantize(q, torch.bfloat16).cpu()
        packed[f"{name}.weight"], packed[f"{name}.weight_scale"] = q.data.cpu(), q.scales.cpu()
        packed[f"{name}.weight_scale_2"] = p.cpu()
        packed[f"{name}.input_scale"] = torch.tensor(8 / 2688)
    norms = {
        f"{name}.weight": torch.ones(HIDDEN, dtype=torch.bfloat16)
        for name in ("input_layernorm", "post_attention_layernorm")
    }
    tables = {
        name: (torch.randn(VOCABULARY, HIDDEN, device=device, generator=generator) * 0.02)
        .bfloat16()
        .cpu()
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    others = tables | {"model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16)}
    for kind, layer in ((FLOATS, floats), (PACKED, packed)):
        (folder / kind).mkdir(parents=True)
        save_file(others, folder / kind / "others.safetensors", {"format": "pt"})
        for index in range(layers):
            tensors = {f"model.layers.{index}.{name}": t for name, t in (layer | norms).items()}
            path = folder / kind / f"layer-{index:02}.safetensors"
            save_file(tensors, path, {"format": "pt"})
        config = _config(layers) | ({"quantization_config": _SCHEME} if kind == PACKED else {})
        (folder / kind / "config.json").write_text(json.dumps(config))


def _config(layers: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": KV // 128,
        "head_dim": 128,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


_NUMBERS = {"num_bits": 4, "type": "float", "group_size": 16, "dynamic": False}
_SCHEME = {
    "quant_method": "modelopt",
    "quant_algo": "NVFP4",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": _NUMBERS,
            "input_activations": _NUMBERS,
        }
    },
}


# The measurement.


@app.command()
def measure(
    folder: Path, result: Path, rounds: int = 3, patience: float = 300, restart: bool = True
) -> None:
    """Start all engines, measure them in turns, and write the best of the rounds.

    `patience` is how many seconds an engine may take to start. `restart` starts each once more,
    alone and with filled caches, and records how long that takes.
    """
    children = {name: _start(name, folder, result) for name in ENGINES}
    starts = dict(_ready(children, patience))
    running = {name: child for name, child in children.items() if name in starts}
    keys = [str(count) for count in SEQUENCES] + ["prefill"]
    speeds: dict[str, dict[str, list[float]]] = {n: {key: [] for key in keys} for n in running}
    for _ in range(rounds):
        for key in keys:
            for name, child in running.items():
                speeds[name][key].append(float(_ask(child, key)))
    for child in running.values():
        _ask(child, "end")
        child.wait()
    again: dict[str, float] = {}
    for name in running if restart else ():
        alone = {name: _start(name, folder, result)}
        again |= dict(_ready(alone, patience))
        _ask(alone[name], "end")
        alone[name].wait()
    found = {
        "about": "tokens a second of vLLM on one GPU, the best of the rounds",
        "command": "python -m nvfp4.bench.engine " + " ".join(sys.argv[1:]),
        "machine": {
            "gpu": torch.cuda.get_device_name(),
            **{name: version(name) for name in ("vllm", "torch", "triton")},
        },
        "tokens": {"prompt": PROMPT, "written": WRITTEN, "prefill": math.prod(PREFILL)},
        "seconds to start, all side by side, empty caches": starts,
        "seconds to start, alone, filled caches": again,
        "tokens a second": speeds,
    }
    result.with_suffix(".json").write_text(json.dumps(found, indent=1))
    result.with_suffix(".md").write_text(table(found))
    print(table(found))


def table(found: dict[str, Any]) -> str:
    """The result as a table, with the geometric mean of decoding over the better of its peers."""
    speeds = {
        name: {key: max(each) for key, each in by_key.items()}
        for name, by_key in found["tokens a second"].items()
    }
    keys = [str(count) for count in SEQUENCES]
    lines = [f"| tokens/s, sequences: | {' | '.join(keys)} | prefill | start s |"]
    lines.append("|---" * (len(keys) + 3) + "|")
    for name, by_key in speeds.items():
        again = found["seconds to start, alone, filled caches"].get(name)
        cells = [f"{by_key[key]:.0f}" for key in [*keys, "prefill"]]
        lines.append(f"| {name} | {' | '.join(cells)} | {again and round(again)} |")
    peers = [name for name in ("Marlin", "humming") if name in speeds]
    if OURS in speeds and peers:
        best = {key: max(speeds[name][key] for name in peers) for key in [*keys, "prefill"]}
        ratio = {key: speeds[OURS][key] / best[key] for key in best}
        mean = math.prod(ratio[key] for key in keys) ** (1 / len(keys))
        lines.append(
            f"| over the better of {' and '.join(peers)} | "
            f"{' | '.join(f'{ratio[key]:.2f}' for key in [*keys, 'prefill'])} | |"
        )
        lines.append(f"\nGeometric mean of decoding: {mean:.2f}")
    return "\n".join(lines) + "\n"


def _start(name: str, folder: Path, result: Path) -> subprocess.Popen[str]:
    log = open(f"{result}.{name.split()[0]}.log", "a")  # noqa: SIM115 - the child's
    command = [sys.executable, "-m", "nvfp4.bench.engine", "serve", name, str(folder)]
    return subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=log, text=True)


def _ready(
    children: dict[str, subprocess.Popen[str]], patience: float
) -> Iterator[tuple[str, float]]:
    """Each engine that starts in time, and its seconds; others are told and ended."""
    deadline = time.monotonic() + patience
    for name, child in children.items():
        assert child.stdout is not None
        answered, _, _ = select([child.stdout], [], [], max(0, deadline - time.monotonic()))
        line = child.stdout.readline() if answered else ""
        if line:
            yield name, float(line)
        else:
            print(f"{name}: not started; its log says why", file=sys.stderr)
            child.kill()


def _ask(child: subprocess.Popen[str], what: str) -> str:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(what + "\n")
    child.stdin.flush()
    return child.stdout.readline()


@app.command()
def serve(name: str, folder: Path) -> None:
    """One engine: print the seconds it took to start, then answer each line with a speed.

    A line is a number of sequences, "prefill" or "end".
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes to the log
    begin = time.perf_counter()
    from vllm import LLM, SamplingParams

    kind, options = ENGINES[name]
    llm = LLM(
        str(folder / kind),
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=max(SEQUENCES),
        kv_cache_memory_bytes=8 << 30,
        gpu_memory_utilization=0.2,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        disable_log_stats=True,
        seed=0,
        compilation_config={"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128, 256]},
        **options,
    )
    print(time.perf_counter() - begin, file=answers, flush=True)
    ids = torch.randint(3, VOCABULARY, (2048,), generator=torch.Generator().manual_seed(0))

    def seconds(prompts: int, tokens: int, written: int) -> float:
        asked = [{"prompt_token_ids": ids[i : i + tokens].tolist()} for i in range(prompts)]
        sampling = SamplingParams(
            temperature=0, detokenize=False, ignore_eos=True, max_tokens=written
        )
        begin = time.perf_counter()
        llm.generate(asked, sampling, use_tqdm=False)
        return time.perf_counter() - begin

    for line in map(str.strip, sys.stdin):
        if line == "end":
            print("ended", file=answers, flush=True)
            break
        if line == "prefill":
            speed = math.prod(PREFILL) / seconds(*PREFILL, 1)
        else:
            speed = int(line) * WRITTEN / seconds(int(line), PROMPT, WRITTEN)
        print(speed, file=answers, flush=True)


if __name__ == "__main__":
    app()
