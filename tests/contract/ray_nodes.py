"""A Ray cluster of several nodes on this machine."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from simulator.learning.learner import Learner
from simulator.learning.workers import Workers

HAS_RAY = importlib.util.find_spec("ray") is not None


class NodesOfRay:
    """A cluster of a head and two nodes with a core each, on this machine, begun when needed."""

    def __init__(self) -> None:
        self._cluster: Any = None

    def open(self, learner: Learner) -> Workers:
        from simulator.learning.ray_workers import RayWorkers

        return RayWorkers(learner, self.address())

    def address(self) -> str:
        if self._cluster is None:
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            from ray._private import ray_constants
            from ray.cluster_utils import Cluster

            # As on macOS and Windows: all of Ray stays on the loopback interface.
            ray_constants.ENABLE_RAY_CLUSTER = False
            self._cluster = Cluster(initialize_head=True, head_node_args=self._settings(0))
            for _ in range(2):
                self.add_a_node()
        return str(self._cluster.address)

    def lose_a_node(self) -> None:
        node = next(iter(self._cluster.worker_nodes))
        self._cluster.remove_node(node, allow_graceful=False)

    def add_a_node(self) -> None:
        self._cluster.add_node(**self._settings(1))
        self._cluster.wait_for_nodes(timeout=60)  # until it is known which ones are lost, too

    def stop(self) -> None:
        if self._cluster is not None:
            self._cluster.shutdown()

    @staticmethod
    def _settings(cores: int) -> dict[str, Any]:
        return {
            "num_cpus": cores,
            "node_ip_address": "127.0.0.1",
            "include_dashboard": False,
            "include_log_monitor": False,
        }
