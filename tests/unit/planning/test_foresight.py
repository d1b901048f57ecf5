"""What is foreseen of a pass, from the passes before."""

from __future__ import annotations

from ciuic_dist.planning.foresight import Foresight, Markov


def run(foresight: Foresight, phase: str, units: str) -> str:
    """What was foreseen before each need but the first, and for the end; "-" for nothing."""
    foresight.begin(phase)
    foreseen = []
    for unit in units:
        foresight.need(ord(unit))
        follower = foresight.next()
        foreseen.append("-" if follower is None else chr(follower))
    foresight.end()
    return "".join(foreseen)


def test_nothing_is_known_of_a_first_pass() -> None:
    assert run(Foresight(), "forward", "abc") == "---"


def test_a_pass_goes_as_the_one_before() -> None:
    foresight = Foresight()
    run(foresight, "forward", "abacab")
    assert run(foresight, "forward", "abacab") == "bacab-"
    assert foresight.guesses == 0


def test_each_phase_has_an_order_of_its_own() -> None:
    foresight = Foresight()
    for _ in range(2):
        run(foresight, "forward", "abc")
        last = run(foresight, "backward", "cab")
    assert last == "ab-"


def test_a_backward_goes_back_over_a_forward_that_was_new() -> None:
    foresight = Foresight()
    for forward in ("axb", "ayb"):
        run(foresight, "forward", forward)
        last = run(foresight, "backward", forward[::-1])
    assert last == "ya-"


def test_what_followed_most_often_is_guessed() -> None:
    foresight = Foresight()
    for forward in ("axb", "ayb", "axb", "axb", "ayb"):
        run(foresight, "forward", forward)
    assert run(foresight, "forward", "ayb") == "xb-"
    assert foresight.guesses > foresight.right > 0


def test_an_order_that_changes_for_good_is_followed_after_two_passes() -> None:
    foresight = Foresight()
    for forward in ("abcd", "abcd", "abd", "abd"):
        run(foresight, "forward", forward)
    before = foresight.guesses
    assert run(foresight, "forward", "abd") == "bd-"
    assert foresight.guesses == before


def test_the_unit_before_the_current_one_tells_them_apart() -> None:
    markov = Markov()
    for _ in range(3):
        markov.observe("forward", [1, 5], 2)
        markov.observe("forward", [3, 5], 4)
        markov.observe("backward", [1, 5], 9)
    assert [markov.guess("forward", before) for before in ([1, 5], [3, 5])] == [2, 4]
    assert markov.guess("backward", [1, 5]) == 9


def test_without_that_the_current_one_alone_counts_and_the_recent_more() -> None:
    markov = Markov()
    for follower in (2, 2, 2, 2, 4, 4, 4, 4):
        markov.observe("forward", [1, 5], follower)
    assert markov.guess("forward", [7, 5]) == 4


def test_a_need_that_should_have_come_before_another_does_so_next_time() -> None:
    foresight = Foresight()
    foresight.begin("forward")
    foresight.need(1)
    foresight.need(2)
    foresight.need(3, before=2)
    foresight.end()
    foresight.begin("forward")
    foresight.need(1)
    assert foresight.next() == 3
