"""Which exchanges are wanted: how a line is known, and the rows it is counted in. Who poses is in test_recall."""

from typing import Any

import pytest

from proxy.wanted import ANY, Wanted

LINE = (
    '{"time":"2026-01-01T00:00:00.000Z","id":"1","incoming_id":"2","upstream_id":"3","route":"relay","method":"POST",'
    '"path":"/v1","model":"m","stream":false,"status":404,"result":"upstream_api_error","key":"alice"}'
)


@pytest.mark.parametrize(
    ("filters", "found", "condition", "values"),
    [
        ({}, True, "TRUE", []),
        ({"route": "relay"}, True, "TRUE AND route = ?", ["relay"]),
        ({"route": "rela"}, False, "TRUE AND route = ?", ["rela"]),
        ({"model": "m", "status": "4xx"}, True, "TRUE AND model = ? AND class = ?", ["m", "4xx"]),
        ({"status": "none"}, False, "TRUE AND class = ?", ["none"]),
        ({"result": "upstream_api_error"}, True, "TRUE AND result = ?", ["upstream_api_error"]),
        ({"key": "alice"}, True, "TRUE AND key = ?", ["alice"]),
        ({"key": "lice"}, False, "TRUE AND key = ?", ["lice"]),
        ({"failed": True}, True, "TRUE AND result NOT IN ('success', 'client_cancelled')", []),
        ({"request_id": "2"}, True, "TRUE", []),
        ({"request_id": "3"}, False, "TRUE", []),
    ],
    ids=str,
)
def test_what_is_wanted_is_known_by_its_line_and_counted_in_its_rows(
    filters: dict[str, Any], found: bool, condition: str, values: list[str]
) -> None:
    wanted = Wanted(**filters)
    assert all(pattern.search(LINE) for pattern in wanted.patterns()) == found
    assert wanted.rows() == (condition, values)


def test_what_was_chosen_is_told_by_its_name() -> None:
    assert ANY.chosen() == Wanted(failed=True).chosen() == {}
    assert Wanted(model="m", status="4xx").chosen() == {"model": "m", "status": "4xx"}
