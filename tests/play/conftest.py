"""The option of the nox session that takes pictures of the page."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", action="store_true", help="make the pictures of foveate play in docs/pictures")
