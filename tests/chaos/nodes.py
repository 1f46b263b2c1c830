"""A Ray of two nodes on this machine, of which one is killed as a whole."""

import os
from functools import cached_property
from unittest import mock

from tests.chaos import faults


class Nodes:
    """Starts when it is first asked for its address; workers fit on both nodes."""

    def __init__(self) -> None:
        self._second = None
        self._started = False

    @cached_property
    def _cluster(self) -> object:
        from ray.cluster_utils import Cluster

        # Death is noticed in seconds, not in half a minute.
        noticing = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5}
        head = {"num_cpus": 1, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
        self._started = True
        with mock.patch.dict(os.environ, faults.slow_disk()):
            return Cluster(initialize_head=True, head_node_args=head | {"_system_config": noticing})

    @property
    def address(self) -> str:
        return self._cluster.address

    def complete(self) -> None:
        """Adds the second node where it is gone."""
        if self._second is None:
            with mock.patch.dict(os.environ, faults.slow_disk()):
                self._second = self._cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")

    def kill(self) -> int:
        """kill -9 of all processes of the second node, its raylet first; how many there were."""
        node, self._second = self._second, None
        started = [info.process.pid for infos in node.all_processes.values() for info in infos]
        killed = faults.kill([one for pid in started for one in faults.family(pid)])
        self._cluster.remove_node(node, allow_graceful=False)
        return killed

    def close(self) -> None:
        if self._started:
            self._cluster.shutdown()
