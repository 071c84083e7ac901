import pytest

from tests.support.grammar import compiler as byte_compiler


@pytest.fixture(scope="session")
def compiler():
    return byte_compiler()
