import pytest

from tests.helpers import interpreter


@pytest.fixture(scope="session")
def interpret():
    interpret = interpreter.Interpreter()
    yield interpret
    interpret.pool.shutdown()
