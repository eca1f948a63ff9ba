import pytest

from tools.server import running_server
from tools.stand_ins import stand_ins


@pytest.fixture(scope="session")
def server():
    with stand_ins() as arguments, running_server(*arguments) as server:
        yield server
