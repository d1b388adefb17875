"""What is used of torch beside its documented interface, as seen in torch 2.14; nothing else in this project does so.

gloo has no exceptions of its own, only words. Where a torch words an error otherwise, the run ends with a traceback
instead of going on, or without the advice; the same command goes on from the latest checkpoint. torchrun tells
processes in a variable whether they share its store; without the variable a process was not started by torchrun.
"""

import os
import re

import torch.distributed as dist

_SIGNS_OF_A_LOST_PEER = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
# No worker was ever there: a wrong interface, say.
_SIGNS_OF_A_WRONG_NETWORK = ("connectFullMesh", "Unable to find address for", "no socket interface found")
_OF_THE_NETWORK = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "MASTER_ADDR", "MASTER_PORT")
SHARES_STORE = "TORCHELASTIC_USE_AGENT_STORE"


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an exception is what a worker meets in an exchange when another one is gone."""
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(sign in text for sign in _SIGNS_OF_A_LOST_PEER)
        and not is_wrong_network(error)
    )


def is_wrong_network(error: BaseException) -> bool:
    """Return whether an exception is what a worker meets where it can't reach any other."""
    text = str(error)
    return any(sign in text for sign in _SIGNS_OF_A_WRONG_NETWORK)


def unreachable_workers(error: BaseException) -> str:
    """Return a line for a person: workers can't reach each other, and which variables say how they should."""
    stated = [f"{name}={os.environ[name]}" for name in _OF_THE_NETWORK if os.environ.get(name)]
    check = f"{', '.join(stated)} say how: correct or unset them" if stated else f"set {_OF_THE_NETWORK[0]}"
    return f"the workers can't reach each other ({last_line(str(error))}); {check} (interfaces: `ip address`)"


def last_line(text: str) -> str:
    """Return the last line that is not empty, where libraries name the cause, without a C++ source file before it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^(\w+Error: )?\[[^]]*\] *", "", lines[-1]) if lines else "no cause is told"
