"""A model's predictions of a text, compared token by token with those of the model in floats."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvfp4.demo.measure import Progress


class Compared(NamedTuple):
    """Means over the predicted tokens, and their standard errors as if tokens were independent.

    over: the negative log-likelihood in nats less that of the model in floats, token by token.
    kl: the divergence of the predicted distribution from that of the model in floats, in nats.
    top1: the share of tokens for which both models think the same token likeliest.
    """

    tokens: int
    perplexity: float
    perplexity_error: float
    over: float
    over_error: float
    kl: float
    kl_error: float
    top1: float
    top1_error: float


@torch.inference_mode()
def log_probabilities(model: Any, window: Tensor) -> Tensor:
    """Predict each next token of a window [T]: log-probabilities float32 [T - 1, vocabulary]."""
    logits = model(window[None].to(model.device)).logits[0, :-1].float()
    return logits.log_softmax(dim=-1).cpu()


class Predictions(NamedTuple):
    """Log-probabilities of a window's next tokens, float32 [T - 1, vocabulary], in files."""

    folder: Path

    def load(self, index: int) -> Tensor:
        return torch.load(self.folder / f"{index}.pt")

    def save(self, index: int, predicted: Tensor) -> None:
        torch.save(predicted, self.folder / f"{index}.pt")


def predict(model: Any, windows: Sequence[Tensor], out: Predictions, done: Progress) -> None:
    """Write a model's predictions to files, since those of all windows may not fit in memory."""
    for index, window in enumerate(windows):
        out.save(index, log_probabilities(model, window))
        done()


def compare(
    predict: Callable[[int, Tensor], Tensor],
    windows: Sequence[Tensor],
    baseline: Predictions,
    done: Progress = lambda: None,
) -> Compared:
    """Compare what `predict` makes of the windows, by index, with the model in floats."""
    found = []
    for index, window in enumerate(windows):
        got, want = predict(index, window), baseline.load(index)
        nll, nll_want = (-p.gather(1, window[1:, None]).squeeze(1).double() for p in (got, want))
        kl = (want.exp() * (want - got)).sum(-1).double()
        same = (got.argmax(-1) == want.argmax(-1)).double()
        found.append(torch.stack([nll, nll - nll_want, kl, same]))
        done()
    nll, over, kl, same = torch.cat(found, dim=1)
    perplexity = math.exp(nll.mean())
    return Compared(
        len(nll),
        perplexity,
        perplexity * _error(nll),
        over.mean().item(),
        _error(over),
        kl.mean().item(),
        _error(kl),
        same.mean().item(),
        _error(same),
    )


def _error(values: Tensor) -> float:
    """The standard error of the mean."""
    return (values.std() / len(values) ** 0.5).item()
