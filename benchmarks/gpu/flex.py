"""flex_attention: plain, with a score edit, and the only way it has to do a mass edit.

A score edit is its score_mod. It offers no hook behind the softmax, so a mass edit is one masked
call for each key class, then a merge by the classes' normalisers: VAR with its gates, the same sums
as the kernels' (a test compares both). Keys are contiguous, programs and classes the same for all
heads and sequences, which is less than the kernels do. Compiled, which is the only fast way; eager
on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention

from gpu.decode_sweep import against
from gpu.peers import Dense
from gpu.problems import VAR_CLASSES, VISUAL, VISUAL_SINK, image_tags, var_program
from gpu.session import Figures, Session
from gpu.shapes import GQA, MHA, TINY_GQA, TINY_MHA
from saccade_kernels.controls import ControlShape

Attend = Callable[..., Any]
Form = Callable[[Attend, Dense], Callable[[], torch.Tensor]]


def run_flex(session: Session, found: Figures) -> None:
    """Prefill at 4k, then decode of a batch; each form costs a compilation."""
    compiled: Attend = flex_attention
    if not session.dry:
        # Beyond the limit Dynamo would quietly go on with the slow form; that is no peer.
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        compiled = torch.compile(flex_attention, dynamic=False)
    for heads in (TINY_MHA, TINY_GQA) if session.dry else (MHA, GQA):
        length = 96 if session.dry else 4096
        inputs = Dense.make(heads, 1, length, length, session.device)
        cell = found.setdefault(f"prefill {heads.name} 1x{length}", {})
        for label, form in FORMS.items():
            one = partial(_timed, session, label=label, form=form, attend=compiled, inputs=inputs)
            session.measure(cell, label, 40, one)
        _against_prefill(session, cell, f"{heads.name} 1x{length}")
    for heads in (TINY_MHA,) if session.dry else (MHA, GQA):
        sequences, context = (2, 96) if session.dry else (32, 4096)
        name = f"{heads.name} {sequences}x{context}"
        inputs = Dense.make(heads, sequences, 1, context, session.device)
        cell = found.setdefault(f"decode {name}", {})
        for label, form in FORMS.items():
            one = partial(_timed, session, label=label, form=form, attend=compiled, inputs=inputs)
            session.measure(cell, label, 40, one)
        against(session, cell, name)


def _timed(
    session: Session, cell: Figures, label: str, form: Form, attend: Attend, inputs: Dense
) -> None:
    torch.compiler.reset()
    kept: Figures = {}
    session.time(kept, label, [form(attend, inputs)])
    cell |= kept[label]


def _against_prefill(session: Session, cell: Figures, name: str) -> None:
    ours = session.known.get("prefill", {}).get(name, {})
    for label, timing in cell.items():
        kinds = {"VAR": "mass edit on all rows", "bias": "score edit on all rows"}
        own = ours.get(next((own for kind, own in kinds.items() if kind in label), "plain"), {})
        if "us" in timing and "us" in own:
            timing["of_ours"] = timing["us"] / own["us"]


def _causal(b: Any, h: Any, row: Any, key: Any) -> Any:
    return row >= key


def _plain(attend: Attend, inputs: Dense) -> Callable[[], torch.Tensor]:
    mask = _causal_mask(inputs)
    gqa = inputs.query.shape[1] != inputs.key.shape[1]
    return lambda: attend(inputs.query, inputs.key, inputs.value, block_mask=mask, enable_gqa=gqa)


def _biased(attend: Attend, inputs: Dense) -> Callable[[], torch.Tensor]:
    tags = image_tags(inputs.key.shape[2])
    bias = torch.zeros(len(tags), device=inputs.key.device)
    bias[torch.from_numpy((tags == VISUAL) | (tags == VISUAL_SINK)).to(bias.device)] = 0.3

    def score(z: Any, b: Any, h: Any, row: Any, key: Any) -> Any:
        return z + bias[key]

    mask = _causal_mask(inputs)
    gqa = inputs.query.shape[1] != inputs.key.shape[1]
    return lambda: attend(
        inputs.query,
        inputs.key,
        inputs.value,
        score_mod=score,
        block_mask=mask,
        enable_gqa=gqa,
    )


def _classes(attend: Attend, inputs: Dense) -> Callable[[], torch.Tensor]:
    """One call a class. The class is read from a tensor, so that one compilation serves all."""
    device = inputs.query.device
    tags = torch.from_numpy(image_tags(inputs.key.shape[2])).to(device)
    wanted = torch.zeros((), dtype=torch.uint8, device=device)
    behind = inputs.key.shape[2] - inputs.query.shape[2]

    def of_class(b: Any, h: Any, row: Any, key: Any) -> Any:
        return (row + behind >= key) & (tags[key] == wanted)

    masks = []
    for index in range(VAR_CLASSES):
        wanted.fill_(index)
        masks.append(_block_mask(of_class, inputs))
    program = var_program(ControlShape(1, 1, inputs.query.shape[-1]), 0.4)
    transform = torch.from_numpy(program.transform[0, 0, :VAR_CLASSES, :VAR_CLASSES]).to(device)
    gates = torch.from_numpy(program.gate_weight[0, 0, :, :VAR_CLASSES]).to(device)
    least = torch.from_numpy(program.gate_threshold[0, 0]).to(device)
    gqa = inputs.query.shape[1] != inputs.key.shape[1]

    def call() -> torch.Tensor:
        outputs, normalisers = [], []
        for index, mask in enumerate(masks):
            wanted.fill_(index)
            output, found = attend(
                inputs.query,
                inputs.key,
                inputs.value,
                block_mask=mask,
                enable_gqa=gqa,
                return_aux=AuxRequest(lse=True),
            )
            outputs.append(output)
            normalisers.append(found.lse.float())
        mass = torch.stack(normalisers, -1).softmax(-1)
        after = mass @ transform.T
        is_open = (mass @ gates.T >= least).all(-1, keepdim=True)
        share = torch.where(is_open, after, mass).to(inputs.query.dtype)
        merged = outputs[0] * share[..., :1]
        for index in range(1, VAR_CLASSES):
            merged = merged + outputs[index] * share[..., index : index + 1]
        return merged

    return call


def _causal_mask(inputs: Dense) -> Any:
    """None for decodes, which see all keys."""
    return _block_mask(_causal, inputs) if inputs.causal else None


FORMS: dict[str, Form] = {
    "flex": _plain,
    "flex with a bias": _biased,
    "flex by classes, merged, with VAR": _classes,
}


def _block_mask(rule: Attend, inputs: Dense) -> Any:
    return create_block_mask(
        rule, None, None, inputs.query.shape[2], inputs.key.shape[2], device=inputs.query.device
    )
