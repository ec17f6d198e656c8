"""Certificates of the losses of other packages: their installed code is called with its own defaults."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from klent.audit.certificate import Certificate

PEERS = ("trl", "verl")


@dataclass(frozen=True)
class PeerAudit:
    """The certificates of one package.

    Attributes:
        package: name of the package.
        version: installed version.
        certificates: one per loss.
    """

    package: str
    version: str
    certificates: tuple[Certificate, ...]

    def to_dict(self) -> dict[str, object]:
        """As nested dicts, lists, strings and numbers that JSON can hold."""
        return {
            "package": self.package,
            "version": self.version,
            "certificates": [certificate.to_dict() for certificate in self.certificates],
        }


def audit_peer(package: str, settings: Mapping[str, object] | None = None) -> PeerAudit:
    """Audit the losses of an installed package.

    Args:
        package: one of ``PEERS``.
        settings: settings that replace the defaults of its configuration (TRL: ``GRPOConfig`` and
            ``RLOOConfig``; verl: ``ActorConfig``).

    Raises:
        KlentError: it is not installed, or klent does not know this version.
        ConfigError: its configuration refuses a setting.
    """
    module = importlib.import_module(f"klent.audit.peers.{package}")
    audit: Callable[[Mapping[str, object]], PeerAudit] = module.audit
    return audit(settings or {})
