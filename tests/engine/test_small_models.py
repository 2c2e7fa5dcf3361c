"""Small models through the engine: as the same checkpoint in transformers, and on two ranks as on
one; the experts of a mixture are shared out between them.
"""

import pytest
import torch
from engine.models import ARCHITECTURES, MIXTURES, SIZES, make
from engine.serving import agreement, own_logprobs, served

NEW_TOKENS = 4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_model_is_served(name, tmp_path, record):
    folder = make(name, tmp_path).modelopt
    sequences = torch.randint(SIZES["vocab_size"], (8, 12), generator=torch.Generator())
    want = own_logprobs(folder, sequences)
    whole = served(folder, sequences, NEW_TOKENS)
    ranks = {"tensor_parallel_size": 2, "enable_expert_parallel": name in MIXTURES}
    halves = served(folder, sequences, NEW_TOKENS, **ranks)
    found = {
        "as in transformers": agreement(whole.logprobs, want),
        "two ranks as one": agreement(halves.logprobs, whole.logprobs),
        "tokens, two ranks as one": (whole.written == halves.written).float().mean().item(),
    }
    record(f"{name}, random weights", found)
    assert min(found.values()) > 0.8, found
