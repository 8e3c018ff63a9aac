"""A hash chain over the rows that a run has read: runs whose chains agree have read the same rows in the same order.

Whatever the number of ranks and the size of a step, the chain is the same, for it has a link a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

FIRST_LINK = hashlib.sha256().hexdigest()
ID_BYTES = 8


def extended(chain: str, row_ids: Iterable[int]) -> str:
    """sha256(chain so far, id of the row as a little-endian int64), row after row; hex digits come in and go out.

    row_ids: place of each row in the dataset from 1 on; a blank row, 0, is no row.
    """
    link = bytes.fromhex(chain)
    for row_id in row_ids:
        if row_id:
            link = hashlib.sha256(link + row_id.to_bytes(ID_BYTES, "little", signed=True)).digest()
    return link.hex()
