"""Which rows of an evaluation set are measured: bins come in, bins with some of their rows go out."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np

from data_tools.bins import Bin, Bins, Row


@dataclass(frozen=True, eq=False)
class ChosenRows(Bin):
    """Some rows of a bin, in their order; `chosen` int64 [num_rows] holds their places in it."""

    chosen: np.ndarray

    def row(self, index: int) -> Row:
        """Row `index` of the chosen ones."""
        return super().row(int(self.chosen[index]))

    def sources(self, index: int) -> list[str]:
        """Sources of row `index` of the chosen ones."""
        return super().sources(int(self.chosen[index]))


def spread_rows(bins: Bins, max_rows: int | None) -> Bins:
    """`max_rows` rows at even distances over all bins, the same ones every time; all if there are no more, or for None.

    Tokens are still counted over all rows of a bin.
    """
    if max_rows is None or bins.num_rows <= max_rows:
        return bins
    places = np.arange(max_rows) * bins.num_rows // max_rows
    ends = np.cumsum([one.num_rows for one in bins.bins])
    chosen_bins: list[Bin] = []
    for one, end in zip(bins.bins, ends, strict=True):
        start = end - one.num_rows
        chosen = places[(places >= start) & (places < end)] - start
        if len(chosen):
            known = {field.name: getattr(one, field.name) for field in fields(one)}
            chosen_bins.append(ChosenRows(**known | {"num_rows": len(chosen)}, chosen=chosen))
    return replace(bins, bins=chosen_bins)
