"""Interpreting a launch on a CPU, without what Triton's interpreter does again and again."""

import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

import nvfp4

pytestmark = pytest.mark.usefixtures("interpreted")


def test_every_call_of_a_device_function_replaced_the_language(monkeypatch, device):
    if device == "cuda":
        pytest.skip("kernels are compiled on a GPU")
    replaced, patch = [], interpreter._patch_lang
    monkeypatch.setattr(
        interpreter, "_patch_lang", lambda function: replaced.append(function) or patch(function)
    )
    nvfp4.quantize(torch.randn(300, 64), backend="triton")
    assert 1 <= len(replaced) <= 3  # one for each set of modules that functions see


def test_the_language_is_as_before_after_a_launch():
    options = interpreter.interpreter_builder.options
    nvfp4.quantize(torch.randn(4, 64), backend="triton")
    assert tl.core.is_builtin(tl.load) and tl.core.is_builtin(tl.core.reduce)
    assert interpreter.interpreter_builder.options == options and options.sanitize_overflow
