"""From the maps of scheme ``aligned`` to carries, tensor by tensor, as every scheme gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otfuse.align.carries import carries
from otfuse.core.alignment import Alignment

if TYPE_CHECKING:
    from otfuse.align.aligned import Aligner
    from otfuse.core.alignment import Carry


class AlignedWalk:
    """One source of an :class:`Aligner`, tensor by tensor."""

    def __init__(self, aligner: Aligner, number: int, kept: frozenset[str], *, keep: bool = False) -> None:
        self._aligner, self._number, self.kept, self._keep = aligner, number, kept, keep
        self._maps = {} if aligner.shared else aligner.maps(number)

    @property
    def steps(self) -> int:
        """How many tensors there are."""
        return len(self._aligner.names)

    def step(self, index: int) -> dict[str, tuple[Carry, ...]]:
        """One tensor with its carries (none: taken as it is)."""
        name, spaces = self._aligner.names[index], self._aligner.spaces
        moves = [(place, self._maps[key]) for key, place in spaces.at.get(name, ()) if key in self._maps]
        form = self._aligner.form
        found = carries(name, form.shapes[name], moves)
        return {name: found if form.frame is None else form.frame.between(name, found, len(form.shapes[name]))}

    def rest(self) -> dict[str, tuple[Carry, ...]]:
        """Nothing is left when all tensors are done."""
        return {}

    def alignment(self) -> Alignment:
        """What was found; maps by space id, ``[anchor, source]`` (``[copies, anchor, source]`` where there are several)."""
        identity = {} if not self._keep else {key: e.dense() for key, e in self._aligner.maps(self._number).items()}
        maps = {key: (m[0] if len(m) == 1 else m).float() for key, m in identity.items()}
        return Alignment(maps, self._aligner.reports(self._number), self._aligner.notes(self._number), self.kept)
