"""Each rule has a test, and something that takes it out; `make rules` sees the test notice it."""

from without import RULES, read_table, tested_rules


def test_each_rule_has_a_test() -> None:
    assert tested_rules() == set(RULES)


def test_each_rule_can_be_taken_out() -> None:
    assert {mutation.rule for mutation in read_table()} == set(RULES)


def test_all_that_is_to_be_taken_out_is_there_once() -> None:
    """Else the table would rot: what is not found is not taken out, and no test can notice."""
    faults = [fault for mutation in read_table() if (fault := mutation.fault())]
    assert not faults, "\n".join(faults)
