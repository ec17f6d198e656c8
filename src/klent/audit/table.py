"""Writes the tables of ``docs/audit.md``: ``python -m klent.audit.table``.

Each table is between two comments that name it. Tables of other packages need those packages installed.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from klent import objectives as O
from klent.audit.call import wire
from klent.audit.certificate import Certificate
from klent.audit.divergences import DIVERGENCES, REDUCED
from klent.audit.fit import EXACT
from klent.audit.groups import SOLVED, certify_advantage
from klent.audit.match import Match
from klent.audit.peers import PEERS, audit_peer
from klent.audit.placements import KL_PLACEMENTS, OBJECTIVES, Placement
from klent.audit.reduction import BATCHES, compare
from klent.audit.words import nearest, short
from klent.errors import KlentError
from klent.io.files import write_atomic

HEAD = ("on-policy", "off-policy", "off-policy, one token", "variance", "pull")


def own_tables() -> dict[str, str]:
    """The tables of klent itself, by name."""
    return {
        "placements": _placements(KL_PLACEMENTS),
        "divergences": _aims(DIVERGENCES),
        "reductions": _reductions(REDUCED),
        "advantages": _advantages(),
        "objectives": _placements(OBJECTIVES),
    }


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


def _aims(placements: Sequence[Placement]) -> str:
    """Bias and variance of losses against what each aims at, on- and off-policy."""
    lines = [
        "| aims at | loss | bias | variance | bias, off-policy | variance, off-policy |",
        f"|{'---|' * 6}",
    ]
    for placement in placements:
        certificate = placement.certificate()
        cells = [f"`{placement.aim}`", placement.name]
        for match in (certificate.on_policy, certificate.off_policy):
            cells += [_bias(match, placement.aim), f"{match.variance:.3g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _reductions(placements: Sequence[Placement]) -> str:
    """What each reduction leaves of what the sum follows."""
    head = ("sequences", "sequences, off-policy", *(f"tokens of {size}" for size in BATCHES))
    lines = [f"| loss | follows as a sum | {' | '.join(head)} |", f"|{'---|' * (2 + len(head))}"]
    for placement in placements:
        whole = placement.certificate()
        loss = wire(placement.loss, dict(placement.settings))
        sequences, tokens = compare(loss, "sequences"), compare(loss, "tokens")
        assert sequences is not None
        assert tokens is not None
        shares = [*sequences.unexplained.values(), *tokens.batches.values()]
        cells = [_cell(whole.on_policy), *(f"{share:.2g}" for share in shares)]
        lines.append(f"| {placement.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _advantages() -> str:
    """What estimators of advantages make of the reward."""
    head = (*(f"weight, solved {solved:g}" for solved in SOLVED), "unexplained")
    lines = [f"| advantage | group | {' | '.join(head)} |", f"|{'---|' * (2 + len(head))}"]
    for name, estimator, settings in (
        ("`group_advantage`", O.group_advantage, {"scale": "std"}),
        ('`group_advantage(scale="none")`', O.group_advantage, {"scale": "none"}),
        ("`leave_one_out`", O.leave_one_out, {}),
    ):
        for size in (2, 8, 16):
            found = certify_advantage(estimator, group_size=size, **settings)
            left = "0" if found.unexplained < EXACT else f"{found.unexplained:.2g}"
            cells = [name, str(size), *(f"{weight:.4g}" for weight in found.weights.values()), left]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _bias(match: Match, aim: str) -> str:
    """Distance from the gradient aimed at; token by token the prefixes may be those that were sampled."""
    bias = min(match.bias[name] for name in (aim, f"{aim}@behaviour") if name in match.bias)
    return "0" if bias < EXACT else f"{bias:.2g}"


def _cell(match: Match) -> str:
    if match.follows == "unknown":
        return f"unknown; nearest {nearest(match.cosine)}"
    return f"`{short(match)}`"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/audit.md"))
