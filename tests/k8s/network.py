"""Who reaches whom under the NetworkPolicies of an overlay, as a network that enforces them decides it."""

import functools
import ipaddress
import json
from collections.abc import Iterable
from typing import Any

from rendered import Object, World, has_pods, role

Peer = Any  # the labels of a pod and the name of its namespace, or an address
_OUTSIDE = ipaddress.ip_address("203.0.113.9")
_METADATA = ipaddress.ip_address("169.254.169.254")  # where clouds give a node's rights to whoever asks
_NODE_DNS = ipaddress.ip_address("169.254.20.10")


def flows(objects: World) -> Iterable[str]:
    """Who reaches whom: all that is needed, and nothing else."""
    roles = sorted({role(each) for each in objects if has_pods(each)})
    return _flows(json.dumps([each["spec"] for each in objects if each["kind"] == "NetworkPolicy"]), tuple(roles))


@functools.cache
def _flows(text: str, roles: tuple[str, ...]) -> list[str]:
    policies, problems = json.loads(text), []

    def expect(allowed: bool, wanted: bool, what: str) -> None:
        if allowed != wanted:
            problems.append(f"{what}: {'is let through' if allowed else 'is not let through'}")

    wanted = {("train", "mlflow", 5000), ("account", "mlflow", 5000), ("mlflow", "postgres", 5432)}
    for source in roles:
        for target in roles:
            for port in (22, 5000, 5432, 29500, 41234):
                needed = (source, target, port) in wanted or source == target == "train"  # NCCL chooses its ports
                # Both ends say so: a policy that is lost or too wide at one end is then held by the other.
                expect(_leaves(policies, source, _pod(target), port), needed, f"from {source} to {target} at {port}")
                expect(_enters(policies, _pod(source), target, port), needed, f"into {target} from {source} at {port}")
        stores = source in ("pack", "finalize", "train", "mlflow")
        for peer, protocol, port, needed in [
            (_OUTSIDE, "TCP", 443, stores),
            (_OUTSIDE, "UDP", 443, False),
            (_OUTSIDE, "TCP", 22, False),
            (_OUTSIDE, "TCP", 5432, False),
            (_OUTSIDE, "UDP", 53, False),
            (_METADATA, "TCP", 443, False),
            (_METADATA, "TCP", 80, False),
            (_NODE_DNS, "UDP", 53, True),
            (_NODE_DNS, "TCP", 53, True),
            (_pod("names", "kube-system"), "UDP", 53, True),
            (_pod("names", "kube-system"), "TCP", 53, True),
            (_pod("names", "kube-system"), "TCP", 8080, False),
            (_pod("names", "kube-system"), "UDP", 8080, False),
            (_pod("names", "other"), "UDP", 53, False),
            (_pod("mlflow", "other"), "TCP", 5000, False),
        ]:
            expect(_leaves(policies, source, peer, port, protocol), needed, f"{source} to {peer} at {protocol} {port}")
        for port in (5000, 5432, 29500):
            expect(_enters(policies, _pod(source, "other"), source, port), False, f"a stranger to {source} at {port}")
            expect(_enters(policies, _OUTSIDE, source, port), False, f"the world to {source} at {port}")
    return problems


def _pod(role: str, space: str = "v2f") -> Peer:
    return {"v2f/role": role}, space


def _leaves(policies: list[Object], source: str, target: Peer, port: int, protocol: str = "TCP") -> bool:
    return _allowed(policies, source, target, port, protocol, "Egress", "to")


def _enters(policies: list[Object], source: Peer, target: str, port: int, protocol: str = "TCP") -> bool:
    return _allowed(policies, target, source, port, protocol, "Ingress", "from")


def _allowed(policies: list[Object], role: str, peer: Peer, port: int, protocol: str, way: str, key: str) -> bool:
    labels = {"v2f/role": role}
    mine = [p for p in policies if way in p.get("policyTypes", ["Ingress"]) and _selects(p["podSelector"], labels)]
    return not mine or any(
        _is_peer(rule.get(key), peer) and _is_port(rule.get("ports"), port, protocol)
        for policy in mine
        for rule in policy.get(way.lower(), [])
    )


def _is_port(ports: list[Object] | None, port: int, protocol: str) -> bool:
    return not ports or any(
        each.get("protocol", "TCP") == protocol and each.get("port", port) == port and "endPort" not in each
        for each in ports
    )


def _is_peer(peers: list[Object] | None, peer: Peer) -> bool:
    return not peers or any(_fits(each, peer) for each in peers)


def _fits(each: Object, peer: Peer) -> bool:
    if not isinstance(peer, tuple):
        block = each.get("ipBlock")
        return (
            bool(block)
            and peer in ipaddress.ip_network(block["cidr"])
            and not any(peer in ipaddress.ip_network(no) for no in block.get("except", []))
        )
    labels, space = peer
    if "namespaceSelector" in each:
        inside = _selects(each["namespaceSelector"], {"kubernetes.io/metadata.name": space})
    else:
        inside = space == "v2f" and "podSelector" in each
    return inside and _selects(each.get("podSelector", {}), labels)


def _selects(selector: Object, labels: dict[str, str]) -> bool:
    exact = selector.get("matchLabels", {}).items() <= labels.items()
    return exact and all(
        {"In": labels.get(e["key"]) in e.get("values", []), "NotIn": labels.get(e["key"]) not in e.get("values", []),
         "Exists": e["key"] in labels, "DoesNotExist": e["key"] not in labels}[e["operator"]]
        for e in selector.get("matchExpressions", [])
    )  # fmt: skip
