"""The only uses of undocumented behaviour of torch in this project, as observed in torch 2.14.

gloo has no exception classes of its own, so its errors are recognised by their text. If another version of torch words
an error differently, the run ends with a traceback instead of continuing, or without advice; the same command resumes
it from the latest checkpoint. torchrun sets a variable that says whether its processes share its store; a process
without the variable was not started by torchrun.
"""

import os
import re

import torch.distributed as dist

_SIGNS_OF_A_LOST_PEER = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
# The workers never reached each other, for example because of a wrong interface.
_SIGNS_OF_A_WRONG_NETWORK = ("connectFullMesh", "Unable to find address for", "no socket interface found")
_OF_THE_NETWORK = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "MASTER_ADDR", "MASTER_PORT")
SHARES_STORE = "TORCHELASTIC_USE_AGENT_STORE"


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an exception means that another worker was lost during an exchange."""
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(sign in text for sign in _SIGNS_OF_A_LOST_PEER)
        and not is_wrong_network(error)
    )


def is_wrong_network(error: BaseException) -> bool:
    """Return whether an exception means that a worker cannot reach any other."""
    text = str(error)
    return any(sign in text for sign in _SIGNS_OF_A_WRONG_NETWORK)


def unreachable_workers(error: BaseException) -> str:
    """Return a message that the workers cannot reach each other, and which variables to correct or set."""
    stated = [f"{name}={os.environ[name]}" for name in _OF_THE_NETWORK if os.environ.get(name)]
    check = f"{', '.join(stated)} say how: correct or unset them" if stated else f"set {_OF_THE_NETWORK[0]}"
    return f"the workers can't reach each other ({last_line(str(error))}); {check} (interfaces: `ip address`)"


def last_line(text: str) -> str:
    """Return the last non-empty line, where libraries name the cause, without a C++ source file in front."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^(\w+Error: )?\[[^]]*\] *", "", lines[-1]) if lines else "no cause is told"
