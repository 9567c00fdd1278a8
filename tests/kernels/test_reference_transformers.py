"""The reference against the eager attention of transformers, inside a tiny llama in float64.

The edit is written out where transformers has nothing in the way: scores are edited when its code
calls softmax, masses when it calls dropout, which stands between the softmax and the values.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from saccade_kernels import ops, reference
from saccade_kernels.batch import PAGE, AttentionBatch, Prefill, Run
from saccade_kernels.controls import ControlShape, Edit, Program
from saccade_kernels.tables import ControlTables, TagTable
from saccade_testing.tables import write_row

LAYERS, HEADS, KV_HEADS, DIM, LENGTH = 2, 4, 2, 8, 70
SHAPE = ControlShape(LAYERS, HEADS, DIM)
LAST = 3  # query rows that decode, one at a time
IMAGE = slice(10, 40)  # class 1
SINKS = [0, 12, 30]  # class 2
HEAD = 1  # the head that is edited


@pytest.fixture
def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=DIM,
        initializer_range=0.4,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:  # the model's own norm rounds to float32
        layer.input_layernorm = torch.nn.RMSNorm(32)
        layer.post_attention_layernorm = torch.nn.RMSNorm(32)
    model.model.norm = torch.nn.RMSNorm(32)
    return model.double().eval()


def tags() -> torch.Tensor:
    row = torch.zeros(LENGTH, dtype=torch.uint8)
    row[IMAGE] = 1
    row[SINKS] = 2
    return row


def score_program() -> Program:
    """Raise the image by its own magnitude and bias the sinks down, in one head."""
    program = Program.identity(SHAPE)
    program.absolute[:, HEAD, 1] = 0.5
    program.bias[:, HEAD, 2] = -1.5
    program.scale[:, HEAD, 0] = -0.25
    return program


def written_out_scores(scores: torch.Tensor) -> torch.Tensor:
    seen = scores > -1e300  # the causal mask is already added
    text = (tags() == 0) & seen[:, HEAD]
    image = (tags() == 1) & seen[:, HEAD]
    edited = scores.clone()
    edited[:, HEAD] += torch.where(image, 0.5 * scores[:, HEAD].abs(), 0.0)
    edited[:, HEAD] -= torch.where(text, 0.25 * scores[:, HEAD], 0.0)
    edited[:, HEAD][..., SINKS] -= 1.5
    return edited


def mass_program() -> Program:
    """Half of what the sinks hold goes to the image, where the image holds a tenth already."""
    program = Program.identity(SHAPE)
    program.transform[:, HEAD, 2, 2] = program.transform[:, HEAD, 1, 2] = 0.5
    program.gate_weight[:, HEAD, 0, 1] = 1.0
    program.gate_threshold[:, HEAD, 0] = 0.1
    return program


def written_out_masses(attention: torch.Tensor) -> torch.Tensor:
    edited = attention.clone()
    for row in edited[:, HEAD].reshape(-1, LENGTH):  # views of the rows
        image, sinks = row[tags() == 1].sum(), row[tags() == 2].sum()
        if image >= 0.1:
            row[tags() == 1] *= (image + sinks / 2) / image
            row[tags() == 2] *= 0.5
    return edited


def head_program() -> Program:
    program = Program.identity(SHAPE)
    program.gain[:, HEAD] = -0.5
    program.shift[:, HEAD] = 0.25
    return program


Hook = Callable[[torch.Tensor], torch.Tensor]


def same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


EDITS: dict[str, tuple[Edit, Callable[[], Program], Hook, Hook]] = {
    "none": (Edit.NONE, lambda: Program.identity(SHAPE), same, same),
    "score": (Edit.SCORE, score_program, written_out_scores, same),
    "mass": (Edit.MASS, mass_program, same, written_out_masses),
    "head": (Edit.HEAD, head_program, same, same),
}


def expected_logits(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, tokens: torch.Tensor, name: str
) -> torch.Tensor:
    """Logits of the whole sequence at once from transformers, the edit written out."""
    _, _, score_hook, mass_hook = EDITS[name]

    def softmax(scores: torch.Tensor, **_: Any) -> torch.Tensor:  # transformers asks for float32
        return torch.softmax(score_hook(scores), -1)

    if name == "head":
        for layer in model.model.layers:
            layer.self_attn.o_proj.register_forward_pre_hook(edit_head)
    with monkeypatch.context() as patch:
        patch.setattr(functional, "softmax", softmax)
        patch.setattr(functional, "dropout", lambda attention, **_: mass_hook(attention))
        logits = model(tokens[None]).logits[0]
    for layer in model.model.layers:
        layer.self_attn.o_proj._forward_pre_hooks.clear()
    return logits


def edit_head(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    output = inputs[0].clone()
    output[..., HEAD * DIM : (HEAD + 1) * DIM] *= -0.5
    output[..., HEAD * DIM : (HEAD + 1) * DIM] += 0.25
    return (output,)


class Paged:
    """An attention function of transformers that runs the reference on a paged cache."""

    def __init__(self, program: Program, edit: Edit) -> None:
        controls, table = ControlTables.allocate(2, SHAPE), TagTable.allocate(2, SHAPE, LENGTH)
        write_row(controls, 1, program)
        table.tags[1] = tags()
        self.caches = torch.full((LAYERS, 2, 4, PAGE, KV_HEADS, DIM), torch.nan).double()
        self.template = AttentionBatch(
            slots=torch.empty(0, dtype=torch.int64),
            query_starts=torch.empty(0, dtype=torch.int32),
            context_lens=torch.empty(0, dtype=torch.int32),
            page_table=torch.tensor([[3, 1]], dtype=torch.int32),
            num_decodes=0,
            max_context=0,
            control_rows=torch.empty(0, dtype=torch.int32),
            tag_rows=torch.tensor([1], dtype=torch.int32),
            edits=(edit,) * LAYERS,
            controls=controls,
            tags=table,
        )

    def batch(self, queries: int, context: int) -> AttentionBatch:
        position = torch.arange(context - queries, context)
        page = self.template.page_table[0].long()[position // PAGE]
        run = Run(queries, 1, self.template.edits)
        return replace(
            self.template,
            slots=page * PAGE + position % PAGE,
            query_starts=torch.tensor([0, queries], dtype=torch.int32),
            context_lens=torch.tensor([context], dtype=torch.int32),
            num_decodes=int(queries == 1),
            max_context=context if queries == 1 else 0,
            prefills=(Prefill(queries, context, (run,)),) if queries > 1 else (),
            control_rows=torch.ones(queries, dtype=torch.int32),
            derived={},
        )

    def __call__(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        queries, context = query.shape[2], key.shape[2]
        batch, layer = self.batch(queries, context), module.layer_idx
        batch.validate()
        packed, *new = (t[0, :, -queries:].transpose(0, 1) for t in (query, key, value))
        reference.store(*new, *self.caches[layer], batch.slots)
        output = ops.attention(packed, *self.caches[layer], batch, layer, scaling)
        return output[None], None


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("decodes", [0, LAST], ids=["prefill", "decode"])
def test_a_llama_gives_the_same_logits(model, monkeypatch: pytest.MonkeyPatch, name, decodes):
    tokens = torch.randint(0, 50, (LENGTH,))
    expected = expected_logits(model, monkeypatch, tokens, name)
    edit, program, _, _ = EDITS[name]
    paged = Paged(program(), edit)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "paged", paged)
    model.config._attn_implementation = "paged"
    cache, logits, start = DynamicCache(config=model.config), [], 0
    for count in (LENGTH - decodes, *[1] * decodes):
        step = tokens[None, start : start + count]
        logits.append(model(step, past_key_values=cache).logits[0])
        start += count
    torch.testing.assert_close(torch.cat(logits), expected, rtol=1e-10, atol=1e-10)


def test_the_edits_are_felt(model, monkeypatch: pytest.MonkeyPatch):
    tokens = torch.randint(0, 50, (LENGTH,))
    plain = expected_logits(model, monkeypatch, tokens, "none")
    for name in ("score", "mass", "head"):
        edited = expected_logits(model, monkeypatch, tokens, name)
        assert (edited - plain).abs().max() > 1e-2
