from collections.abc import Iterator

import pytest

from tests.contract.ray_nodes import NodesOfRay


@pytest.fixture(scope="session")
def nodes() -> Iterator[NodesOfRay]:
    nodes = NodesOfRay()
    yield nodes
    nodes.stop()
