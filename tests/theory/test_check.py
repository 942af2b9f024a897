"""Reports, checks with their controls, and the registry."""

import json

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest

from ntk_robust.theory import Check, Report, Verdict, check_names, exact_claim, run_check, select
from ntk_robust.theory._report import worst

S, V, I, N = Verdict.SUPPORTED, Verdict.VIOLATED, Verdict.INCONCLUSIVE, Verdict.NOT_APPLICABLE

HOLDS = exact_claim("holds", 0, "==", 0)
FAILS = exact_claim("fails", 1, "==", 0)
UNKNOWN = exact_claim("unknown", float("nan"), "==", 0)
MET = exact_claim("met", 0, "==", 0)
NOT_MET = exact_claim("not met", 1, "==", 0)
OPEN = exact_claim("open", float("nan"), "==", 0)


@pytest.mark.parametrize(
    ("hypotheses", "conclusions", "verdict"),
    [
        ((), (HOLDS,), S),
        ((MET,), (HOLDS,), S),
        ((MET,), (HOLDS, FAILS), V),
        ((MET,), (HOLDS, UNKNOWN), I),
        ((MET,), (UNKNOWN, FAILS), V),
        ((NOT_MET,), (HOLDS,), N),
        ((NOT_MET,), (FAILS,), N),
        ((MET, OPEN), (HOLDS,), I),
        ((MET, OPEN), (FAILS,), I),
        ((OPEN, NOT_MET), (FAILS,), N),
    ],
)
def test_a_report_blames_the_statement_only_where_its_hypotheses_are_met(hypotheses, conclusions, verdict):
    assert Report(hypotheses, conclusions).verdict is verdict


def test_a_report_refuses_to_conclude_nothing_and_to_name_two_claims_alike():
    with pytest.raises(ValueError, match="without conclusions"):
        Report((MET,), ())
    with pytest.raises(ValueError, match="holds"):
        Report((HOLDS,), (HOLDS,))


def test_not_applicable_counts_only_where_there_is_nothing_else():
    assert worst([N, S]) is S
    assert worst([N, N]) is N
    assert worst([]) is S
    assert worst([S, N, I]) is I
    assert worst([V, I, S]) is V


def make_check(run, control) -> Check:
    return Check("A (2019), item 1", "all is well", lambda size, key: Report((), (run,)), lambda size, key: control)


@pytest.mark.parametrize(
    ("run", "control", "verdict", "control_verdict"),
    [
        (HOLDS, Report((), (FAILS,)), S, V),
        (HOLDS, Report((), (HOLDS,)), I, S),  # a control that does not fail: the check has no power
        (HOLDS, Report((NOT_MET,), (FAILS,)), I, N),
        (FAILS, Report((), (HOLDS,)), V, S),
        (FAILS, Report((), (FAILS,)), V, V),
    ],
)
def test_support_counts_only_beside_a_control_that_fails(run, control, verdict, control_verdict, key):
    result = run_check(make_check(run, control), "quick", key)
    assert (result.verdict, result.control_verdict) == (verdict, control_verdict)


def test_checks_run_in_float64_and_leave_the_caller_its_setting(key):
    def run(size, key):
        return Report((), (exact_claim("bits", jnp.finfo(jr.normal(key, (2,)).dtype).bits, "==", 64),))

    with jax.enable_x64(False):
        result = run_check(Check("A", "B", run, run), "quick", key)
        assert jnp.zeros(()).dtype == jnp.float32
    assert result.report.conclusions[0].verdict is S


def test_the_record_is_strict_json_with_a_verdict_for_each_claim(key):
    result = run_check(make_check(UNKNOWN, Report((MET,), (FAILS,))), "quick", key)
    record = json.loads(json.dumps(result.record(), allow_nan=False))
    assert record["verdict"] == "INCONCLUSIVE"
    assert record["control_verdict"] == "VIOLATED"
    assert [claim["verdict"] for claim in record["claims"]] == ["INCONCLUSIVE"]
    assert [claim["role"] for claim in record["control_claims"]] == ["hypothesis", "conclusion"]
    assert record["claims"][0]["measured"] == "nan"


def test_a_wrong_size_and_an_empty_citation_are_refused(key):
    with pytest.raises(Exception, match="medium"):
        run_check(make_check(HOLDS, Report((), (FAILS,))), "medium", key)
    with pytest.raises(ValueError, match="empty citation"):
        Check(" ", "statement", lambda size, key: Report((), (HOLDS,)), lambda size, key: Report((), (FAILS,)))


def test_selection_is_by_prefix_and_an_unknown_pattern_lists_the_names():
    names = check_names()
    assert names == tuple(sorted(names))
    assert all(name.startswith("gao2019") for name in (check.name for check in select(["gao2019"])))
    assert [check.name for check in select([names[0], names[0][:4]])] == [n for n in names if n[:4] == names[0][:4]]
    with pytest.raises(ValueError, match=names[0]):
        select(["nobody1900"])


def test_without_patterns_every_check_is_selected_under_its_file_name():
    assert tuple(check.name for check in select([])) == check_names()
