"""Who is left out where a pack would overspend, and by which pace that is judged."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pmlray.engine.scheduling.outlook import TOLERANCE, Outlook, Pace, too_much


def pack(*groups: dict[int, float], spent: float = 0.0, done: float = 0.0) -> Outlook:
    """A pack whose members have so much work before them, by index, group by group."""
    work = {i: amount for group in groups for i, amount in group.items()}
    ahead = dict.fromkeys(work, 10)
    return Outlook(tuple(map(tuple, groups)), ahead, work, 5.0, spent, 0.0, done)


def test_nobody_is_left_out_without_a_limit_or_within_it() -> None:
    found = pack({0: 10.0}, {1: 30.0}, spent=5.0)
    assert too_much(found, 1.0, None) == ()
    assert too_much(found, 1.0, 45.0) == ()


def test_those_with_most_before_them_are_left_out_first_and_with_all_of_their_group() -> None:
    found = pack({0: 10.0}, {1: 15.0, 3: 20.0}, {2: 30.0}, spent=5.0)
    assert too_much(found, 1.0, 50.0) == (1, 3)
    assert too_much(found, 1.0, 20.0) == (1, 3, 2)
    # Their price decides, not their work alone.
    assert too_much(found, 0.1, 20.0) == ()


@given(
    st.lists(st.floats(0.1, 100.0), min_size=1, max_size=8),
    st.floats(0.0, 50.0),
    st.floats(0.01, 10.0),
    st.floats(0.0, 500.0),
)
def test_what_is_kept_ends_within_the_limit(
    work: list[float], spent: float, price: float, limit: float
) -> None:
    found = pack(*({i: amount} for i, amount in enumerate(work)), spent=spent)
    gone = set(too_much(found, price, limit))
    kept = sum(amount for i, amount in enumerate(work) if i not in gone)
    if len(gone) < len(work):
        left = price * kept
        assert spent + left <= (1 + TOLERANCE) * limit + 1e-6 or left <= TOLERANCE * limit + 1e-6
    # No fewer would have done: with the last that went, it would not have ended in time.
    if gone:
        least = min(work[i] for i in gone)
        assert spent + price * (kept + least) > (1 + TOLERANCE) * limit - 1e-6


def test_what_has_nearly_ended_ends() -> None:
    """Handing it on would save what is tolerated anyway, and lose what it has cost."""
    found = pack({0: 1.0}, {1: 0.5}, spent=104.0)
    assert too_much(found, 1.0, 100.0) == ()
    assert too_much(found, 2.0, 100.0) == (0,)


def test_without_a_pace_only_a_pack_that_has_spent_all_stops() -> None:
    found = pack({0: 1000.0}, {1: 1.0}, spent=99.0)
    assert too_much(found, None, 100.0) == ()
    assert too_much(found, None, 90.0) == (0, 1)


def test_the_pace_is_that_of_ordinary_steps() -> None:
    seconds = iter((100.0, 102.0, 103.0, 193.0, 195.0))
    pace = Pace(lambda: next(seconds))
    # A process's first steps compile: here for 90 gpu_seconds.
    assert pace.look(pack({0: 9.0}, spent=91.0, done=1.0)) is None
    assert pace.look(pack({0: 7.0}, spent=95.0, done=3.0)) is None
    assert pace.look(pack({0: 5.0}, spent=97.0, done=5.0)) == (1.0, 0.5)
    # So does one later; the stretch before it speaks for those to come.
    assert pace.look(pack({0: 4.0}, spent=187.0, done=6.0)) == (1.0, 0.5)
    assert pace.look(pack({0: 2.0}, spent=191.0, done=8.0)) == (2.0, 1.0)
