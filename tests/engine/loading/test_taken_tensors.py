"""The list of a model's tensors is made without memory, and without torch's compiler."""

import subprocess
import sys

_LISTS = """
import sys
import torch
from engine.loading.presets import PRESETS
from engine.loading.taken_tensors import taken_tensors
from engine.models import registry

for preset in PRESETS.values():
    config = registry.parse({**preset, "vocab_size": 1 << 20, "hidden_size": 4096, "eos_token_id": 0}, {})
    assert len(taken_tensors(config, torch.bfloat16)) > 30
sys.exit("torch's compiler was imported" if "torch._dynamo" in sys.modules else 0)
"""


def test_a_list_does_not_import_the_compiler_which_takes_seconds_and_memory():
    subprocess.run([sys.executable, "-c", _LISTS], check=True)
