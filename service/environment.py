"""Which of the process's variables with the prefix of the settings are meant for the service.

A cluster puts its own variables into every container: for a Service named topk or topk-http they begin
with TOPK_, and one of them may have exactly the name of a setting.
"""

import re
from collections.abc import Mapping

#: Kubernetes' and Docker's links to a service: TOPK_SERVICE_HOST, TOPK_PORT_8000_TCP_ADDR, TOPK_PORT=tcp://…
LINK_NAME = re.compile(r".*_SERVICE_(HOST|PORT(_\w+)?)|.*_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?", re.I | re.S)
LINK_VALUE = re.compile(r"(tcp|udp|sctp)://\S+", re.I)
#: Variables that a client of the service reads.
CLIENT_NAMES = frozenset({"TOPK_API_KEY", "TOPK_API_BASE", "TOPK_BASE_URL"})


def is_link(name: str, value: str) -> bool:
    """Whether a variable is the address of another service."""
    is_port = name.upper().endswith("_PORT") and LINK_VALUE.fullmatch(value) is not None
    return is_port or LINK_NAME.fullmatch(name) is not None


def own_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without links to services and variables for clients."""
    return {
        name: value
        for name, value in environment.items()
        if not is_link(name, value) and name.upper() not in CLIENT_NAMES
    }
