"""Writes the tables of ``docs/audit.md``: ``python -m klent.audit.table``.

A table stands between two comments that name it. Those of other packages need them installed.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from klent.audit.certificate import Certificate, Finding
from klent.audit.peers import PEERS, audit_peer
from klent.audit.placements import KL_PLACEMENTS, OBJECTIVES, Placement
from klent.audit.words import nearest, short
from klent.errors import KlentError
from klent.io.files import write_atomic

HEAD = ("on-policy", "off-policy", "off-policy, one token", "variance", "pull")


def own_tables() -> dict[str, str]:
    """The tables of what is in this package, by name."""
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
    """Certificates as a table, a row each."""
    lines = [f"| loss | {' | '.join(HEAD)} |", f"|---|{'---|' * len(HEAD)}"]
    for name, known in rows:
        if known.problem is not None:
            lines.append(f"| {name} | {known.problem} |{' |' * (len(HEAD) - 1)}")
            continue
        off = known.off_policy
        cells = (
            _cell(known.on_policy),
            _cell(off),
            f"`{short(off.one_position)}`" if off.one_position.follows != "unknown" else "-",
            f"{known.on_policy.variance:.3g}",
            "yes" if known.restoring_force else "-",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def replace_table(page: str, name: str, table: str) -> str:
    """A page with the table between ``<!-- table: name -->`` and ``<!-- end -->`` exchanged.

    >>> replace_table("<!-- table: x -->\\nold\\n<!-- end -->", "x", "new")
    '<!-- table: x -->\\nnew\\n<!-- end -->'
    """
    pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(\n<!-- end -->)", re.S)
    changed, count = pattern.subn(lambda found: found[1] + table + found[2], page)
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
    return markdown([(each.name, each.certificate()) for each in placements])


def _cell(finding: Finding) -> str:
    if finding.follows == "unknown":
        return f"unknown; nearest {nearest(finding.cosine)}"
    return f"`{short(finding)}`"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/audit.md"))
