"""Why a function cannot stand where a recipe names it: it is of another kind, or nothing feeds it."""

from klent.config.binding import KINDS_OF, Function, Section, missing_from, resolve, shipped
from klent.errors import ConfigError
from klent.kit.names import nearest
from klent.objectives.kinds import Kind, declaration

_PLACE: dict[Kind, str] = {
    "token_loss": "loss",
    "pair_loss": "loss",
    "token_reward": "token_reward",
    "advantage": "advantage",
    "selector": "select.NAME",
    "token_weight": "weigh.TERM",
}
_NOWHERE: dict[Kind, str] = {
    "estimator": "is an estimator: it makes numbers for an update or a log, and is no term of a recipe",
    "measure": "measures full distributions: it is for a log or a test, and is no term of a recipe",
    "reduction": "averages the loss, which every recipe does: set it under `reduce`",
}
#: what would provide a number that no part of a run provides yet
_PROVIDER = {
    "sample": "for a denoiser, write method: ddpo or dpok, whose terms read the numbers that its policy gives",
}


def wrong_function(section: Section, name: str) -> str | None:
    """Why ``name`` cannot be a function of this section; None if it can."""
    kinds = KINDS_OF[section]
    from_file = ".py:" in name
    valid = f"valid here: {', '.join(sorted(shipped(*kinds)))}, or path.py:function"
    try:
        function = resolve(name)
    except ConfigError as error:
        if from_file:
            return str(error)
        return f"klent.objectives has no such function{nearest(name, shipped(*kinds))}; {valid}"
    declared = declaration(function)
    if declared is not None and declared.kind not in kinds:
        subject = f"{name} declares itself @{declared.kind}: it" if from_file else name
        return f"{subject} {_elsewhere(section, declared.kind)}; {valid}"
    if not from_file and (reason := _unfed(name, function)):
        return f"{reason}; {valid}"
    return None


def _elsewhere(section: Section, kind: Kind) -> str:
    if kind in _PLACE:
        return f"does not go under {section} but under `{_PLACE[kind]}`"
    return _NOWHERE[kind]


def _unfed(name: str, function: Function) -> str | None:
    """A shipped function that reads what no part of a run provides."""
    missing = missing_from(function)
    if not missing:
        return None
    providers = ", ".join(_PROVIDER[number] for number in missing if number in _PROVIDER)
    listed = ", ".join(f"`{number}`" for number in missing)
    return f"{name} needs {listed}, which no part of a run provides{f' ({providers})' if providers else ''}"
