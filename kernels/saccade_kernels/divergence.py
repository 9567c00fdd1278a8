"""Which heads look at the image: the vision-aware head divergence of VHR (arXiv 2412.13949).

Head outputs are compared before the output projection, those of one query row with the image, z,
and those of its counterpart without it, z0:

    VHD_i = ||z_i - z0_i||                                                       (Eq. 4)
    VHD_i counts as 0 if VHD_i > mean + std and ||z0_i||^2 > mean + std          (Eq. 6)
    head i is reactive iff VHD_i > median                                        (Eq. 7)

mean, std and median go over the query heads of the layer, all of them in Eq. 6 of the unfiltered
values. The median of an even number is the lower of the two in the middle, so that ties select
fewer heads, never more than half; equal values select none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Reactivity:
    """How heads are judged.

    ``drop_outliers``: Eq. 6 applies. ``population``: std divides by the number of heads, not by
    one less. ``relative``: VHD is divided by ||z0||, so that large outputs are no advantage.
    """

    drop_outliers: bool = True
    population: bool = False
    relative: bool = False

    def divergence(self, output: torch.Tensor, without: torch.Tensor) -> torch.Tensor:
        """VHD of every head, unfiltered.

        Args:
            output: with the image, [rows, heads, head_dim], any float dtype.
            without: without it, likewise.

        Returns:
            [rows, heads], float32, float64 for float64.
        """
        work = torch.promote_types(output.dtype, torch.float32)
        output, without = output.to(work), without.to(work)
        found: torch.Tensor = torch.linalg.vector_norm(output - without, dim=-1)
        if self.relative:
            size = torch.linalg.vector_norm(without, dim=-1)
            found = found / size.clamp(min=torch.finfo(work).tiny)
        return found

    def reactive(self, divergence: torch.Tensor, without: torch.Tensor) -> torch.Tensor:
        """Which heads depend on the image: bool [rows, heads].

        Args:
            divergence: what :meth:`divergence` gave.
            without: as there.
        """
        if self.drop_outliers:
            size = without.to(divergence.dtype).square().sum(-1)
            outlier = (divergence > self.limit(divergence)) & (size > self.limit(size))
            divergence = divergence.masked_fill(outlier, 0.0)
        return divergence > divergence.median(-1, keepdim=True).values

    def limit(self, values: torch.Tensor) -> torch.Tensor:
        """mean + std over the heads, [rows, 1]; a single value never exceeds it.

        Args:
            values: [rows, heads].
        """
        heads = values.shape[-1]
        mean = values.mean(-1, keepdim=True)
        freedom = heads if self.population else max(heads - 1, 1)
        std = ((values - mean).square().sum(-1, keepdim=True) / freedom).sqrt()
        return mean + std
