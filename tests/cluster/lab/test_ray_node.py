"""The ports of the nodes that are started here."""

from itertools import combinations

import pytest

from cluster.lab.ray_node import _NUM_PORTS, _first_port

_PORTS_OF_A_PROCESS = 100


@pytest.mark.parametrize("process_id", [1, 4_194_000])
def test_processes_begun_after_each_other_look_for_ports_far_apart(process_id):
    ports = [_first_port(process_id + number) for number in range(50)]
    assert all(20_000 <= port < 30_000 for port in ports)
    distances = [abs(one - other) for one, other in combinations(ports, 2)]
    assert min(min(distance, _NUM_PORTS - distance) for distance in distances) >= _PORTS_OF_A_PROCESS
