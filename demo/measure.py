"""The demo's measurements: projections' outputs, perplexity, weights, and written text."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvfp4.layers import Linear

Progress = Callable[[], None]


class Projection(NamedTuple):
    """Cosine similarity of a layer's NVFP4 output with bf16.

    cosine: bf16 has the layer's own weights. same_weights: bf16 has the NVFP4 weights, dequantized,
    so that only the error of quantizing activations is left.
    """

    name: str
    cosine: float
    same_weights: float


def cosine(a: Tensor, b: Tensor) -> float:
    """The cosine similarity of all elements of a and b, in float64."""
    return F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()


def block_linears(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Yield every nn.Linear of the transformer blocks by name, without embedding and head."""
    for name, module in model.model.layers.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module


class Quantized(NamedTuple):
    """The NVFP4 layers of a model by name, and the bytes of their weights before and after."""

    layers: dict[str, Linear]
    before: int
    after: int


def quantize_linears(model: Any, backend: str, done: Progress) -> Quantized:
    """Quantize the linear layers of every block; the model itself is not changed."""
    layers: dict[str, Linear] = {}
    before = after = 0
    for name, linear in block_linears(model):
        layers[name] = Linear.from_float(linear, backend=backend)
        before += linear.weight.nbytes
        after += layers[name].packed().nbytes
        done()
    return Quantized(layers, before, after)


def replace_linears(model: Any, layers: Mapping[str, Linear]) -> None:
    for name, layer in layers.items():
        model.model.layers.set_submodule(name, layer)


@torch.inference_mode()
def projection_cosines(
    model: Any, layers: Mapping[str, Linear], tokens: Tensor, done: Progress
) -> list[Projection]:
    """Compare the output of each NVFP4 layer, by name, with bf16 on that model's activations."""

    def compare(name: str) -> Callable[[Tensor, Tensor], Projection]:
        layer = layers[name]

        def of(x: Tensor, want: Tensor) -> Projection:
            got = layer(x)
            same = F.linear(x, layer.packed().dequantize(x.dtype), layer.bias)
            return Projection(name, cosine(got, want), cosine(got, same))

        return of

    return on_activations(
        model, tokens, [(linear, compare(name)) for name, linear in block_linears(model)], done
    )


def on_activations(
    model: Any,
    tokens: Tensor,
    compared: list[tuple[nn.Module, Callable[[Tensor, Tensor], Projection]]],
    done: Progress,
) -> list[Projection]:
    """Run the model, and call each module's function with the module's input and output."""
    found = []

    def hook_of(of: Callable[[Tensor, Tensor], Projection]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            found.append(of(args[0], output))
            done()

        return hook

    hooks = [module.register_forward_hook(hook_of(of)) for module, of in compared]
    try:
        model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@torch.inference_mode()
def perplexity(model: Any, tokens: Tensor) -> float:
    """The perplexity of tokens [1, T]: exp of their mean negative log-likelihood."""
    logits = model(tokens).logits[0, :-1].float()
    return math.exp(F.cross_entropy(logits, tokens[0, 1:]).item())


@torch.inference_mode()
def continuation(model: Any, tokenizer: Any, prompt: str, new_tokens: int) -> str:
    """The text that the model writes after the prompt, greedily."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    # The options override the checkpoint's defaults for sampling.
    written = model.generate(
        **inputs,
        max_new_tokens=new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    return tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
