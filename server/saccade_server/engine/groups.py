"""Groups: a sequence and the branches that its plan asks for, which go through the engine together.

A group is admitted, preempted and ended as one. Its members may compute their prompts in chunks of
their own, but the last prompt row of all of them, and each generated row, runs in one common step:
there their logits can be combined, and what one of them measures is at hand for another. One token
is drawn, for the leader, and appended to all. A sequence without branches is a group of one.

No tensors.
"""

from __future__ import annotations

from collections.abc import Sequence as Batch

from msgspec.structs import replace

from saccade_server.engine.request import GenerateRequest
from saccade_server.engine.sequence import Sequence


def form(request: GenerateRequest) -> Sequence:
    """The leader of a new group, with its branches in the order of the request's."""
    leader = Sequence(request)
    # A branch's own draw is nobody's; what changes single logits changes them in both.
    sampling = replace(request.sampling, temperature=0.0, logprobs=None)
    asked = () if request.plan is None else request.plan.needs.branches
    for index, branch in enumerate(request.branches):
        own = GenerateRequest(
            request_id=request.request_id,
            tokens=branch.tokens,
            sampling=sampling,
            images=branch.images,
            plan=branch.plan,
            trace=branch.trace,
            cache_salt=request.cache_salt,
        )
        source = asked[index].source if index < len(asked) else -1
        leader.branches.append(
            Sequence(own, leader=leader, measures=branch.measures, source=source)
        )
    return leader


def next_lengths(members: Batch[Sequence], budget: int) -> list[int]:
    """Tokens that each member computes in the next step, ``budget`` tokens at most in all.

    Last rows run in one common step, so if not all pending rows fit into this step, or a member
    computes generated rows one at a time, every member stops before its last row:

        pending 5 and 9, budget 14     5 and 9: both last rows in this step
        pending 5 and 9, budget 10     4 and 6, then 1 and 3 in the next step

    Prompts that must be whole are computed from the first token to the last in one step, or not at
    all: zeros if the budget is too small.
    """
    if is_whole(members) and any(m.computed < m.prompt_length for m in members):
        prompts = [member.prompt_length for member in members]
        return prompts if sum(prompts) <= budget else [0] * len(members)
    pending = [member.pending for member in members]
    in_one = all(member.most(member.pending) == member.pending for member in members)
    if in_one and sum(pending) <= budget:
        return pending
    lengths = []
    for member in members:
        lengths.append(min(member.most(member.pending - 1), budget))
        budget -= lengths[-1]
    return lengths


def is_whole(members: Batch[Sequence]) -> bool:
    """True if the prompts of these members must be computed in one step, from the first token."""
    return any(member.needs.whole_prompt for member in members)
