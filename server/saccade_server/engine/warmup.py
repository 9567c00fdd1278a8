"""Steps of sequences that nobody asked for: to compile kernels early, and to measure memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence as Batch
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

from saccade_interventions.edits import HeadEdit, MassEdit, ScoreEdit, TagRun
from saccade_interventions.phases import Phase
from saccade_interventions.plan import Plan
from saccade_kernels.batch import PAGE
from saccade_kernels.controls import CLASSES, ControlShape
from saccade_kernels.residual import ResidualProgram
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.grammar_state import GrammarState
from saccade_server.engine.masks import Masks, bits_of
from saccade_server.engine.request import GenerateRequest, SamplingParams
from saccade_server.engine.runner import Runner
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.traces.data import AttentionReading, Axis, Trace

CLASS_COUNTS = (1, 2, 4, CLASSES)
"""Numbers of key classes that edited kernels are compiled for; the others are rounded up."""

ROW = 1
"""The row of either table that a dummy plan uses; its first real owner writes it anew."""


def dummy_step(
    lengths: Batch[int], plan: Plan | None = None, trace: Trace | None = None
) -> list[Chunk]:
    """Prompts of these lengths, in the first pages, drawn the costliest way, as grammars' are."""
    chunks: list[Chunk] = []
    free = 1
    for index, length in enumerate(lengths):
        request = GenerateRequest(
            request_id=f"dummy-{index}",
            tokens=(0,) * length,
            sampling=SamplingParams(max_tokens=1, top_p=0.9),
            plan=plan,
            trace=trace,
        )
        sequence = Sequence(request)
        sequence.grammar = GrammarState(Future())
        if plan is not None:
            sequence.tag_row = ROW
            sequence.control_rows = dict.fromkeys(Phase, ROW) if plan.edits else {}
        sequence.pages = list(range(free, free - (-length // PAGE)))
        free += len(sequence.pages)
        chunks.append(Chunk.of(sequence, length))
    return chunks


def warm_up(runner: Runner, longest: int) -> None:
    """Run every kind of step once, so that no request waits for what is made at first use.

    What finds sinks is left to the self-test, which runs a request of every method.

    The cache and the tables' rows must be unused: some that nobody holds are written.

    Args:
        longest: tokens that a step, and a sequence, may have.
    """
    length = min(PAGE, longest)
    trace = dummy_trace(runner.tables.shape)
    _run(runner, dummy_step([1]))
    _run(runner, dummy_step([1, length] if length > 1 else [1], trace=trace))
    for classes in CLASS_COUNTS if length >= CLASSES else ():
        plan = dummy_plan(runner.tables.shape, length, classes)
        plan = replace(plan, question_start=1).with_rules(*runner.rules.rehearsal())
        runner.tables.write_program(ROW, plan.packed(Phase.LAST))
        runner.tables.write_residuals(ROW, dummy_residuals(plan.shape.layers))
        runner.tables.open_tags(ROW, plan)
        chunks = dummy_step([length, length], plan, trace)
        chunks[0] = _last_token(chunks[0])  # its context is what the cache holds, which is zeros
        _run(runner, chunks)
        if classes == 1:
            _run(runner, dummy_step([length], replace(plan, heads=())))


def dummy_plan(shape: ControlShape, length: int, classes: int) -> Plan:
    """Edits heads, and scores and masses if there are classes, everywhere."""
    sites = tuple((layer, tuple(range(shape.heads))) for layer in range(shape.layers))
    every, tags = tuple(Phase), tuple(range(1, classes))
    halved = tuple(
        tuple((i == j) * (0.5 if i else 1.0) for j in range(classes)) for i in range(classes)
    )
    return Plan(
        shape=shape,
        prompt_length=length,
        question_start=0,
        classes=classes,
        tags=tuple(TagRun(tag - 1, tag, tag) for tag in tags),
        scores=(ScoreEdit(sites, every, tags, bias=1.0),) if tags else (),
        masses=(MassEdit(sites, every, halved),) if tags else (),
        heads=(HeadEdit(sites, every, 1.5),),
    )


def dummy_trace(shape: ControlShape) -> Trace:
    """Looks at the attention of all rows, which needs the most memory, in every layer."""
    layers, heads = tuple(range(shape.layers)), tuple(range(shape.heads))
    rows = (0, sys.maxsize)
    over: frozenset[Axis] = frozenset({"layer"})
    return Trace((AttentionReading(name="", rows=rows, layers=layers, heads=heads, over=over),))


def dummy_residuals(layers: int) -> ResidualProgram:
    """Edits every site, along the direction of nobody."""
    program = ResidualProgram.identity(layers)
    program.count[:] = 1
    return program


def allowing_all(runner: Runner, held: tuple[Sequence, ...]) -> Masks:
    """Masks for these sequences that take nothing away."""
    bits = bits_of(len(held), -(-runner.model.vocab_size // 32), runner.model.device)
    return Masks({sequence: row for row, sequence in enumerate(held)}, bits.fill_(-1))


def _last_token(chunk: Chunk) -> Chunk:
    chunk.sequence.computed = chunk.length - 1
    return Chunk.of(chunk.sequence, 1)


def _run(runner: Runner, chunks: list[Chunk]) -> None:
    for chunk in chunks:
        runner.rules.admit(chunk.sequence)
    runner.launch(chunks, partial(allowing_all, runner)).wait()
    for chunk in chunks:
        runner.forget(chunk.sequence)
