"""The kernels on one GPU: right first, then against the chip's limits and their peers.

    python benchmarks/kernels.py [--budget 560] [--parts ceilings accuracy decode ...]
    python benchmarks/kernels.py --dry-run

Timed with CUDA graphs, median of five; keys that would fit the L2 cache take turns.
"""

from __future__ import annotations

import json

import torch
from gpu import (
    accuracy,
    decode_sweep,
    layer_sweep,
    own_sweep,
    prefill_sweep,
    saliency_sweep,
    sink_sweep,
    stream_sweep,
)
from gpu.ceilings import measure_ceilings
from gpu.flex import run_flex
from gpu.session import Part, goals, open_session, parser, supervise

PARTS = (
    Part("ceilings", 10, measure_ceilings),
    Part("accuracy", 60, accuracy.run_accuracy),
    Part("decode", 20, decode_sweep.run_decode),
    Part("prefill", 20, prefill_sweep.run_prefill),
    Part("decode_peers", 10, decode_sweep.run_decode_peers),
    Part("saliency", 15, saliency_sweep.run_saliency),
    Part("layers", 10, layer_sweep.run_layers),
    Part("sinks", 5, sink_sweep.run_sinks),
    Part("streams", 8, stream_sweep.run_streams),
    Part("own_classes", 15, own_sweep.run_own),
    Part("flex", 45, run_flex),
)
SWEEPS = (
    decode_sweep,
    prefill_sweep,
    saliency_sweep,
    layer_sweep,
    sink_sweep,
    stream_sweep,
    accuracy,
)
GOALS = [goal for sweep in SWEEPS for goal in sweep.GOALS]


def main() -> None:
    made = parser(__doc__, budget=560)
    made.add_argument("--check", type=int, help="one case of the accuracy part, in this process")
    options = made.parse_args()
    if options.check is not None:
        print(json.dumps(accuracy.check(accuracy.CASES[options.check], torch.device("cuda"))))
        return
    supervise(options)
    with torch.no_grad():
        open_session("kernels", options, goals(GOALS)).run(PARTS)


if __name__ == "__main__":
    main()
