"""In what order the rows of a table are run, and how long each state and answer is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sdekit.plan.rows import Row, Terms


class Op(NamedTuple):
    """One row, scheduled. Slots number the states first, then the answers.

    Args:
        row: the row's number.
        first: the first slot of its sum, -1 if the sum is empty.
        scale: the coefficient of the first.
        rest: the other slots and their coefficients.
        noises: the noises and their coefficients.
        dead: the slots that nothing needs after this row.
        asks: the slots and numbers of the answers to be asked for at the new state.
    """

    row: int
    first: int
    scale: float
    rest: Terms
    noises: Terms
    dead: tuple[int, ...]
    asks: tuple[tuple[int, int], ...]


def schedule(rows: Sequence[Row], asked: Sequence[int], first: int, last: int) -> tuple[Op, ...]:
    """Return the rows from `first`, the start, to `last`, where answer j is asked for at the state asked[j]."""
    count = len(rows)
    made = {i: i for i in range(last + 1)} | {count + j: i for j, i in enumerate(asked) if i < last}
    use = {slot: min(i + 1, last) for slot, i in made.items() if first <= i < last}  # the last row that needs a slot
    for i in range(first + 1, count):
        needed = [*(k for k, _ in rows[i].states), *(count + j for j, _ in rows[i].answers)]
        use |= {slot: min(i, last + 1) for slot in needed if slot in made}  # last + 1: by the second part of a plan
    dead: dict[int, list[int]] = {}
    for slot, end in use.items():
        dead.setdefault(end, []).append(slot)
    asks: dict[int, list[tuple[int, int]]] = {}
    for j, i in enumerate(asked):
        if first <= i < last:
            asks.setdefault(i, []).append((count + j, j))
    ops = [Op(first, -1, 0.0, (), (), (), tuple(asks.get(first, ())))]
    for i in range(first + 1, last + 1):
        terms = [*rows[i].states, *((count + j, c) for j, c in rows[i].answers)]
        # a coefficient 1 saves a multiplication; a state, unlike an answer, may give its memory
        terms.sort(key=lambda term: (term[1] != 1, term[0]))
        (slot, scale), *rest = terms or [(-1, 0.0)]
        ops.append(Op(i, slot, scale, tuple(rest), rows[i].noises, tuple(dead.get(i, ())), tuple(asks.get(i, ()))))
    return tuple(ops)


def memory(ops: Sequence[Op]) -> int:
    """Return how many tensors of the state's shape a run holds at once, at most: states, answers, and the new sum."""
    held: set[int] = set()
    most = 0
    for op in ops:
        held.add(op.row)
        most = max(most, len(held))
        held.difference_update(op.dead)
        held.update(slot for slot, _ in op.asks)
        most = max(most, len(held))
    return most
