"""Writes tests/fixtures/safetensors/reference.safetensors with the reference implementation.

Made with safetensors 0.8.0, torch 2.13.0:  python tools/ref/make_safetensors_fixture.py
"""
import torch
from safetensors.torch import save_file

base = (torch.arange(12, dtype=torch.float32).reshape(3, 4) - 5) * 0.75
tensors = {
    "f32": base,
    "f16": base.to(torch.float16),
    "bf16": base.to(torch.bfloat16),
    "f64": base.to(torch.float64),
    "i64": torch.tensor([-1234567890123456789, 2], dtype=torch.int64),
    "i32": torch.tensor([-5, 6], dtype=torch.int32),
    "i16": torch.tensor([[-5], [6]], dtype=torch.int16),
    "i8": torch.tensor([-5, 6, 7], dtype=torch.int8),
    "u8": torch.tensor([250], dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 7),
    "\u03b1.\u2581 weight": base.clone(),
}
save_file(tensors, "tests/fixtures/safetensors/reference.safetensors",
          metadata={"made by": "safetensors \u2581 \"quoted\""})
