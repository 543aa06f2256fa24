"""How threads wait for each other: bounded, unless somebody has chosen."""

from __future__ import annotations

import pytest

from pmlray.engine.runtime.thread_barriers import CHOICES, bound_waits


@pytest.mark.parametrize("name", CHOICES)
def test_what_somebody_has_set_is_left_alone(name: str) -> None:
    environment = {name: "somebody's", "HOME": "/"}
    bound_waits(environment)
    assert environment == {name: "somebody's", "HOME": "/"}


def test_the_drivers_choice_counts_where_the_node_has_none() -> None:
    bare, chosen = {"HOME": "/"}, {"OMP_WAIT_POLICY": "ACTIVE"}
    bound_waits(bare, chosen)
    assert bare == {"HOME": "/", "OMP_WAIT_POLICY": "ACTIVE"}
    node = {"GOMP_SPINCOUNT": "5"}
    bound_waits(node, chosen)
    assert node == {"GOMP_SPINCOUNT": "5"}
