"""What fills the context, as the transcript shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kcode.tui.blocks import Block, Listing, Remark
from kcode.tui.figures import bar_text

if TYPE_CHECKING:
    # Its modules take long to import, and the screen opens before they are needed.
    from kcode.weights import Breakdown

BAR_CELLS = 20


def breakdown_blocks(found: Breakdown) -> list[Block]:
    about = "" if found.is_exact else "about "
    whole = f"{found.tokens:,}" if found.limit is None else f"{found.tokens:,} of {found.limit:,}"
    total = found.limit or found.tokens
    rows = [(word, f"{bar_text(tokens, total, BAR_CELLS)} {tokens:,}") for word, tokens in found.rows]
    heavy = [
        ("", ""),
        *(("largest" if not at else "", f"{piece.tokens:,} {piece.label}") for at, piece in enumerate(found.heavy)),
    ]
    return [Remark("i", f"the context holds {about}{whole} tokens", "accent"), Listing([*rows, *heavy])]
