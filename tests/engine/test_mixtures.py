"""Mixtures of experts through the engine: as the same checkpoint in transformers, and on two ranks
as on one.
"""

import pytest
import torch
from engine.models import MIXTURES, SIZES, make
from engine.serving import agreement, own_logprobs, served

NEW_TOKENS = 4


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_served(name, tmp_path, record):
    folder = make(name, tmp_path).modelopt
    sequences = torch.randint(SIZES["vocab_size"], (8, 12), generator=torch.Generator())
    want = own_logprobs(folder, sequences)
    whole = served(folder, sequences, NEW_TOKENS)
    halves = served(
        folder, sequences, NEW_TOKENS, tensor_parallel_size=2, enable_expert_parallel=True
    )
    found = {
        "as in transformers": agreement(whole.logprobs, want),
        "expert parallel 2 as 1": agreement(halves.logprobs, whole.logprobs),
        "tokens, expert parallel 2 as 1": (whole.written == halves.written).float().mean().item(),
    }
    record(f"{name}, random weights", found)
    assert min(found.values()) > 0.8, found
