"""What merging a model's weights takes of a process that does nothing else; one JSON object.

    python -m saccade_testing.merged_memory

Of ``size`` bytes of weights: ``peak`` and ``end``, by how much the process has grown at most, and
when they are merged.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from saccade_server.models.family import serve

CONFIG = LlamaConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=6,
    num_attention_heads=16,
    vocab_size=64,
)


def resident(what: str) -> int:
    """Bytes of this process's memory: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])


def main() -> None:
    """Measure, and print what was found."""
    with torch.device("meta"):
        model = LlamaForCausalLM(CONFIG)
    model.to_empty(device="cpu")
    for weight in model.parameters():
        weight.data.fill_(0.5)
    size = sum(weight.nbytes for weight in model.parameters())
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    served = serve(model)
    assert served.parameters * 4 > 0.99 * size
    found = {"peak": resident("VmHWM") - before, "end": resident("VmRSS") - before}
    print(json.dumps({"size": size, **found}))


if __name__ == "__main__":
    main()
