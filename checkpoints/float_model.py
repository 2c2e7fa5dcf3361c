"""Loading of a whole language model in bfloat16, by transformers."""

import os
from pathlib import Path
from typing import Any

import torch

from nvfp4.checkpoints.load import load_floats
from nvfp4.checkpoints.parsing import quantization_config, read_json
from nvfp4.checkpoints.schemes import CONFIG_FILE
from nvfp4.checkpoints.skeleton import auto_class


def load_float_model(path: Path, device: str) -> tuple[Any, Any]:
    """Load a language model in bfloat16, and its tokenizer; nothing is downloaded.

    The path is a GGUF file or a Hugging Face folder. Quantized weights are dequantized.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # the commands draw their own progress bars
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": torch.bfloat16}
    folder, which = path, {}
    if path.is_file():
        folder, which = path.parent, {"gguf_file": path.name}
        # Newer versions of transformers keep the GGUF's own quantization unless told otherwise.
        # Older ones always dequantize.
        if hasattr(transformers, "GgufConfig"):
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **which)
    if path.is_dir() and quantization_config(read_json(path / CONFIG_FILE)):
        return load_floats(path, device), tokenizer
    auto = auto_class(transformers.AutoConfig.from_pretrained(folder, **which))
    model = auto.from_pretrained(folder, **which, **options)
    return model.to(device).eval(), tokenizer
