"""The list of what is relayed, and the paths that try to look as if they were on it."""

import pytest

from proxy.endpoints import Endpoints

LIST = Endpoints(("/v1/responses", "/v1/images/*", "/v1/*/content", "/exact.dot"))


@pytest.mark.parametrize(
    ("path", "included"),
    [
        (b"/v1/responses", True),
        (b"/v1/responses/", False),
        (b"/v1/responses/x", False),
        (b"/V1/responses", False),
        (b"//v1/responses", False),
        (b"/v1/respons%65s", False),
        (b"/v1/images/", True),
        (b"/v1/images/a/b.c", True),
        (b"/v1/images", False),
        (b"/v1/files/f-1/content", True),
        (b"/v1/files/content", True),
        (b"/v1/content", False),
        (b"/exact.dot", True),
        (b"/exactXdot", False),
        (b"/v1/images/\n", True),
        (b"", False),
        (b"/v1/images/.", False),
        (b"/v1/images/..", False),
        (b"/v1/images/../files", False),
        (b"/v1/images/%2e%2e/files", False),
        (b"/v1/images/.%2E/files", False),
        (b"/v1/images/%252e%252e/files", False),
        (b"/v1/images/%25252e./files", False),
        (b"/v1/images/x%2f..%2ffiles", False),
        (b"/v1/images/..%5cfiles", False),
        (b"/v1/images/..\\files", False),
        (b"/v1/images/..;a=b/files", False),
        (b"/v1/images/%" + b"25" * 20 + b"2e", False),
        (b"/v1/files#/v1/images/x", False),
        (b"/v1/images/x#y", False),
        (b"/v1/images/x%23y", True),
        (b"/v1/images/...", True),
        (b"/v1/images/a..b", True),
        (b"/v1/images/100%", True),
    ],
)
def test_what_is_on_the_list(path: bytes, included: bool) -> None:
    assert LIST.include(path) is included


def test_without_a_list_every_path_is_relayed() -> None:
    assert Endpoints(()).include(b"/v1/../%2e%2e/anything")


def test_no_path_makes_a_pattern_go_back_over_it() -> None:
    listed = Endpoints(("*a*a*a*a*a*b",))
    assert not listed.include(b"a" * 30_000)
    assert listed.include(b"a" * 30_000 + b"b")
