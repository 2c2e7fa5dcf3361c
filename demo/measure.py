"""What is measured: each projection's output, perplexity, weights, and what the models write."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvfp4.layers import Linear

Progress = Callable[[], None]


class Projection(NamedTuple):
    name: str
    cosine: float


def block_linears(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Every nn.Linear of every transformer block: not the embedding, not the head."""
    for name, module in model.model.layers.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module


def quantize_linears(model: Any, backend: str, done: Progress) -> tuple[int, int]:
    """Replace every block's linear layers by NVFP4 ones; returns their weights' bytes before and
    after.
    """
    before = after = 0
    for name, linear in list(block_linears(model)):
        layer = Linear.from_float(linear, backend=backend)
        model.model.layers.set_submodule(name, layer)
        before += linear.weight.nbytes
        after += sum(
            t.nbytes for t in (layer.weight, layer.weight_scales, layer.weight_global_scale)
        )
        done()
    return before, after


@torch.inference_mode()
def projection_cosines(
    model: Any, quantized: Any, tokens: Tensor, done: Progress
) -> list[Projection]:
    """Each projection's output in NVFP4 against bf16, both on the bf16 model's own activations."""
    found = []

    def compare(name: str, layer: Linear) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            cosine = F.cosine_similarity(
                layer(*args).double().flatten(), output.double().flatten(), dim=0
            )
            found.append(Projection(name, cosine.item()))
            done()

        return hook

    hooks = [
        linear.register_forward_hook(compare(name, quantized.model.layers.get_submodule(name)))
        for name, linear in block_linears(model)
    ]
    try:
        model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@torch.inference_mode()
def perplexity(model: Any, tokens: Tensor) -> float:
    """exp of the mean negative log-likelihood of tokens [1, T], each given all before it."""
    logits = model(tokens).logits[0, :-1].float()
    return math.exp(F.cross_entropy(logits, tokens[0, 1:]).item())


@torch.inference_mode()
def continuation(model: Any, tokenizer: Any, prompt: str, new_tokens: int) -> str:
    """What the model writes after the prompt, greedily."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    # Greedy whatever sampling defaults the checkpoint came with.
    written = model.generate(
        **inputs,
        max_new_tokens=new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    return tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
