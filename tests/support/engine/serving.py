"""The engine, and the same model without it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvfp4.checkpoints import load_model

SAME = 1e-4
"""Nats. Logits that differ by the order of float32 sums alone are nearer (about 1e-5); one
activation that falls on the other side of a rounding boundary moves them by 1e-2 and more.
"""


@dataclass(frozen=True)
class Served:
    """Of sequences of one length: each token's log probability given those before it [S, T - 1];
    what was written after each, greedily [S, new tokens]; the seconds that writing took.
    """

    logprobs: Tensor
    written: Tensor
    seconds: float


def served(folder: Path, sequences: Tensor, new_tokens: int, **options: Any) -> Served:
    """By an engine of its own, with options of vllm.LLM."""
    from vllm import LLM, SamplingParams

    options = {"enforce_eager": True, "dtype": "float32", "max_model_len": 256} | options
    llm = LLM(str(folder), skip_tokenizer_init=True, disable_log_stats=True, **options)
    prompts = [{"prompt_token_ids": each} for each in sequences.tolist()]
    common = {"temperature": 0, "detokenize": False, "ignore_eos": True}
    scored = llm.generate(prompts, SamplingParams(max_tokens=1, prompt_logprobs=0, **common))
    start = time.perf_counter()
    answers = llm.generate(prompts, SamplingParams(max_tokens=new_tokens, **common))
    seconds = time.perf_counter() - start
    llm.llm_engine.engine_core.shutdown()
    return Served(
        torch.tensor(
            [
                [
                    found[token].logprob
                    for found, token in zip(each.prompt_logprobs[1:], ids[1:], strict=True)
                ]
                for each, ids in zip(scored, sequences.tolist(), strict=True)
            ]
        ),
        torch.tensor([list(answer.outputs[0].token_ids) for answer in answers]),
        seconds,
    )


@torch.inference_mode()
def own_logprobs(folder: Path, sequences: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Log probabilities of the same checkpoint in transformers on nvfp4.layers, [S, T - 1]. W4A4,
    as the plugin runs every checkpoint.
    """
    model = load_model(folder, dtype=dtype, activation="nvfp4")
    logits = model(sequences).logits[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, sequences[:, 1:, None]).squeeze(-1)


def agreement(a: Tensor, b: Tensor) -> float:
    """The share of log probabilities that are the same but for the order of sums."""
    return ((a - b).abs() < SAME).float().mean().item()
