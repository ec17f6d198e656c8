"""Writes the tables of ``docs/audit.md``: ``python -m klent.audit.table``.

Each table is between two comments that name it. Tables of other packages need those packages installed.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from klent.audit.certificate import Certificate, Match
from klent.audit.peers import PEERS, audit_peer
from klent.audit.placements import KL_PLACEMENTS, OBJECTIVES, Placement
from klent.audit.words import nearest, short
from klent.errors import KlentError
from klent.io.files import write_atomic

HEAD = ("on-policy", "off-policy", "off-policy, one token", "variance", "pull")


def own_tables() -> dict[str, str]:
    """The tables of klent itself, by name."""
    return {"placements": _placements(KL_PLACEMENTS), "objectives": _placements(OBJECTIVES)}


def peer_table(package: str) -> str:
    """The table of an installed package.

    Raises:
        KlentError: it is not installed.
    """
    audit = audit_peer(package)
    rows = [(certificate.target, certificate) for certificate in audit.certificates]
    return f"{package} {audit.version}\n\n{markdown(rows)}"


def markdown(rows: Sequence[tuple[str, Certificate]]) -> str:
    """Certificates as a table, one row per certificate."""
    lines = [f"| loss | {' | '.join(HEAD)} |", f"|---|{'---|' * len(HEAD)}"]
    for name, certificate in rows:
        if certificate.problem is not None:
            lines.append(f"| {name} | {certificate.problem} |{' |' * (len(HEAD) - 1)}")
            continue
        off = certificate.off_policy
        cells = (
            _cell(certificate.on_policy),
            _cell(off),
            f"`{short(off.one_position)}`" if off.one_position.follows != "unknown" else "-",
            f"{certificate.on_policy.variance:.3g}",
            "yes" if certificate.restoring_force else "-",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def replace_table(page: str, name: str, table: str) -> str:
    """A page with the table between ``<!-- table: name -->`` and ``<!-- end -->`` replaced.

    >>> replace_table("<!-- table: x -->\\nold\\n<!-- end -->", "x", "new")
    '<!-- table: x -->\\nnew\\n<!-- end -->'
    >>> replace_table("<!-- table: x -->\\n<!-- end -->", "x", "new")  # one that is still empty
    '<!-- table: x -->\\nnew\\n<!-- end -->'
    """
    pattern = re.compile(rf"(<!-- table: {re.escape(name)} -->\n)(?:(?!<!-- ).)*(<!-- end -->)", re.S)
    changed, count = pattern.subn(lambda match: f"{match[1]}{table}\n{match[2]}", page)
    if count != 1:
        raise ValueError(f"the page has {count} tables named {name}, expected 1")
    return changed


def main(path: Path) -> None:
    """Bring the tables of a page up to date."""
    page = path.read_text(encoding="utf-8")
    for name, table in own_tables().items():
        page = replace_table(page, name, table)
    for package in PEERS:
        try:
            page = replace_table(page, package, peer_table(package))
        except KlentError as error:
            print(f"{package}: left as it is; {error}")
    write_atomic(path, page)
    print(f"wrote {path}")


def _placements(placements: tuple[Placement, ...]) -> str:
    return markdown([(placement.name, placement.certificate()) for placement in placements])


def _cell(match: Match) -> str:
    if match.follows == "unknown":
        return f"unknown; nearest {nearest(match.cosine)}"
    return f"`{short(match)}`"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/audit.md"))
