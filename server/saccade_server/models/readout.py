"""What a site holds, read from a tape: behind a step in fixed places, or while another runs.

Reading this way changes nothing of the step: no site of it becomes busy, so its rows get the bits
that they get when nobody reads.
"""

from __future__ import annotations

import torch

from saccade_kernels import ops
from saccade_kernels.residual import SiteKind, site_of
from saccade_server.models.decoder import Decoder
from saccade_server.models.residual import ResidualStep
from saccade_server.models.tape import OUTPUTS, Activation

KEPT = {SiteKind.RESIDUAL: Activation.RESIDUAL, **OUTPUTS}
"""The activation that a site is read from."""


def site_rows(
    decoder: Decoder,
    kind: SiteKind,
    index: int,
    kept: torch.Tensor,
    programs: torch.Tensor,
    residuals: ResidualStep | None,
) -> torch.Tensor:
    """Rows of a site of layer ``index`` as the model goes on with them, edits included.

    Args:
        kept: the rows of its activation, see :data:`KEPT`, [n, hidden_size].
        programs: int32 [n], the rows of the residual tables that they follow.
        residuals: what the step edited; None: nothing.

    Returns:
        [n, hidden_size]; of attention and MLP what the residual gets, behind a norm that follows.
    """
    if kind is SiteKind.RESIDUAL:
        return kept
    own = decoder.layers[index].weights
    is_attention = kind is SiteKind.ATTENTION_OUTPUT
    norm = own.attention_post_norm if is_attention else own.mlp_post_norm
    rows = kept if norm is None else ops.rms_norm(kept, norm)
    site = site_of(kind, index)
    if residuals is None or site not in residuals.sites:
        return rows
    return ops.edit_residual(rows, programs, residuals.tables, site)
