"""Expressions mean what they mean in Qtap, or, where Qtap errs, what they say."""

from __future__ import annotations

import pytest
from rules.corpus import CORPUS, outcome_of


@pytest.mark.parametrize("case", CORPUS, ids=[case.text for case in CORPUS])
def test_expressions_mean_what_they_say(case) -> None:
    """Without ``compat``: ``!`` negates, and nobody guesses at mixed ``&&`` and ``||``."""
    assert outcome_of(case.text) == case.outcome


@pytest.mark.parametrize("case", CORPUS, ids=[case.text for case in CORPUS])
def test_compat_mode_means_what_qtap_means(case) -> None:
    """With ``rulekit.compat: qtap``, Qtap's outcome for every expression."""
    assert outcome_of(case.text, qtap_compat=True) == (case.qtap or case.outcome)
