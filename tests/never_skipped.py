# SPDX-License-Identifier: Apache-2.0
"""In continuous integration a test that cannot run fails: what is skipped there is never missed."""

import os
from collections.abc import Generator

import pytest

MAY_SKIP = "may_skip"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    is_expected = hasattr(report, "wasxfail") or item.get_closest_marker(MAY_SKIP) is not None
    if report.skipped and not is_expected and os.environ.get("CI") == "true":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"It cannot run here, and with CI=true it has to. {why}"
    return report
