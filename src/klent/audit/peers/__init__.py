"""Certificates of other packages' losses: their installed code is called as it is, with its own defaults."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from klent.audit.certificate import Certificate

PEERS = ("trl", "verl")


@dataclass(frozen=True)
class PeerAudit:
    """The certificates of one package.

    Attributes:
        package: its name.
        version: the installed one.
        certificates: one for each loss.
    """

    package: str
    version: str
    certificates: tuple[Certificate, ...]

    def to_dict(self) -> dict[str, Any]:
        """As nested dicts, lists, strings and numbers that JSON can hold."""
        return {
            "package": self.package,
            "version": self.version,
            "certificates": [certificate.to_dict() for certificate in self.certificates],
        }


def audit_peer(package: str, settings: Mapping[str, Any] | None = None) -> PeerAudit:
    """Audit the losses of an installed package.

    Args:
        package: one of ``PEERS``.
        settings: of its configuration (TRL's ``GRPOConfig`` and ``RLOOConfig``, verl's ``ActorConfig``),
            over its defaults.

    Raises:
        KlentError: it is not installed, or klent does not know this version.
        ConfigError: its configuration refuses a setting.
    """
    module = importlib.import_module(f"klent.audit.peers.{package}")
    audit: Callable[[Mapping[str, Any]], PeerAudit] = module.audit
    return audit(settings or {})
