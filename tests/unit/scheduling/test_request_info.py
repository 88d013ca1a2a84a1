# SPDX-License-Identifier: Apache-2.0
"""What a strategy can ask of a request."""

from vllm_gateway.scheduling import RequestInfo


def test_a_header_is_found_in_any_case_and_the_first_counts() -> None:
    headers = [(b"X-Tenant", b"a"), (b"x-tenant", b"b"), (b"X-Name", b"J\xc3\xbcrgen"), (b"X-Raw", b"\xff")]
    request = RequestInfo("r", "m", "/v1/x", False, b"{}", headers)
    assert request.header("x-TENANT") == "a"
    assert request.header("X-Name") == "Jürgen"
    assert request.header("x-raw") == "\udcff"
    assert request.header("X-None") is None
    assert RequestInfo("r", "m", "/v1/x", False, b"{}").header("x-tenant") is None
