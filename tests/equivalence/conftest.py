"""Every case of the equivalence tests, run once: starting the processes costs more than most cases."""

from typing import Any

import pytest

from tests.equivalence.case_lists import CASES
from tests.equivalence.cases import Case, merged, run_cases
from tests.ranks import run_ranks


@pytest.fixture(scope="session")
def split_results() -> dict[Case, dict[str, Any]]:
    """What the devices of each case hold together."""
    ranks = run_ranks(run_cases, 4, CASES, timeout=400)
    return {
        case: merged([result for result in (rank[n] for rank in ranks) if result is not None])
        for n, case in enumerate(CASES)
    }
