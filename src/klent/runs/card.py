"""The model card of an export: what was trained on what, how it was measured, and how to do it again."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from klent.config.task import KEYS
from klent.kit.tables import Row, finite, step_of
from klent.kit.text import fixed, plural
from klent.measure.score import LABELS, loss_of, score_of, temperatures_of
from klent.models.locate import HUB_ID
from klent.models.pull import KNOWN
from klent.report.headline import Stat, headline, versions
from klent.report.read import RunData, read_run

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$])")


def model_card(run: Path, step: int, *, licence: str | None) -> str:
    """``README.md`` of a model, with the front matter that model hubs read.

    Args:
        run: the run's folder.
        step: whose weights the model has; what came later is left out.
        licence: of the base model; None where it is not known.
    """
    data = _until(read_run(run, texts=False), step)
    name = str(data.config.get("name") or run.resolve().name)
    parts = [
        _front(data, licence),
        f"# {_escaped(name)}",
        _what(data, step),
        _licence(licence, str(data.config.get("model") or "the base model")),
        _evaluations(data),
        _training(data),
        _again(data),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _until(run: RunData, step: int) -> RunData:
    """The run as it was at a step."""
    return replace(
        run,
        rows=[row for row in run.rows if step_of(row) <= step],
        evals=[row for row in run.evals if step_of(row) <= step],
    )


def _front(run: RunData, licence: str | None) -> str:
    """The keys that hubs know; each value is quoted, so that none can become another key."""
    model, source = str(run.config.get("model") or ""), _source(run)
    lines = ["library_name: transformers", "pipeline_tag: text-generation"]
    lines += [f"license: {licence}"] if licence else []
    lines += [f'base_model: "{model}"'] if HUB_ID.fullmatch(model) and not Path(model).exists() else []
    lines += [f'datasets: ["{source}"]'] if HUB_ID.fullmatch(source) and not Path(source).exists() else []
    lines += ["tags: [klent]"]
    return "\n".join(["---", *lines, "---"])


def _what(run: RunData, step: int) -> str:
    recipe = run.config
    model = str(recipe.get("model") or "a model")
    known = f" {_escaped(f'({KNOWN[model].description})')}" if model in KNOWN else ""
    lora, rate = recipe.get("lora"), finite(_mapping(recipe.get("optimizer")).get("lr")) or 0.0
    how = (
        f"a LoRA adapter of rank {lora.get('rank')}, merged into the weights"
        if isinstance(lora, Mapping)
        else "all weights"
    )
    method = f" by {_escaped(str(recipe['method']))}" if recipe.get("method") else ""
    prompts, group = finite(recipe.get("prompts_per_step")), finite(recipe.get("group_size"))
    size = f" of {prompts:.0f} prompts × {group:.0f} completions" if prompts and group else ""
    sentences = [
        f"`{_code(model)}`{known}, trained on `{_code(_source(run))}`{method}:",
        f"{plural(step, 'step')}{size}.",
        f"What was trained: {how}.",
        f"Learning rate {rate:g}, seed {recipe.get('seed', 0)}.",
    ]
    reward = recipe.get("reward")
    if reward:
        sentences.append(f"Reward: {', '.join(f'`{_code(one)}`' for one in _rewards(reward))}.")
    return " ".join(sentences)


def _licence(licence: str | None, model: str) -> str:
    said = f"`{licence}`" if licence else "not known here: look it up before you pass this model on"
    also = "It binds this model too; that of the data may as well."
    return f"Licence of the base model, `{_code(model)}`: {said}. {also}"


def _evaluations(run: RunData) -> str:
    """Held-out scores and losses before and after, each with its interval."""
    rows: list[tuple[str, str, str]] = []
    if run.heldout:
        first, last = run.heldout[0], run.heldout[-1]
        for at, words in temperatures_of(last).items():
            label = f"{LABELS[run.kind]} {words}".strip()
            rows.append((label, _score(first, run, at), _score(last, run, at)))
        rows.append(
            ("entropy of the answers, nats per token", _number(first, "entropy"), _number(last, "entropy"))
        )
    if run.losses:
        first, last = run.losses[0], run.losses[-1]
        rows.append(("loss of held-out completions, nats per token", str(loss_of(first)), str(loss_of(last))))
    if not rows:
        return "## Evaluation\n\nNot evaluated in training."
    measured = run.heldout or run.losses
    first_step, last_step = step_of(measured[0]), step_of(measured[-1])
    steps = f"before: step {first_step}, after: step {last_step}"
    if first_step == last_step:
        rows = [(label, before, "not measured") for label, before, _ in rows]
        steps = f"before: step {first_step}, and no step after it"
    problems = finite(measured[-1].get("problems"))
    n = f" on {plural(int(problems), 'held-out problem')}" if problems else ""
    table = [
        f"| measured{n} | before | after |",
        "|---|---|---|",
        *(f"| {a} | {b} | {c} |" for a, b, c in rows),
    ]
    return "\n".join(
        ["## Evaluation", "", *table, "", f"With 95% intervals; {steps}; problems that were not trained on."]
    )


def _score(row: Row, run: RunData, at: str) -> str:
    score = score_of(row, run.kind, at)
    return "not scored" if score is None else str(score)


def _number(row: Row, key: str) -> str:
    return fixed(finite(row.get(key)))


def _training(run: RunData) -> str:
    """The large numbers of the report's top."""
    top = headline(run)["stats"]
    stats = [stat for stat in (top if isinstance(top, list) else []) if isinstance(stat, Stat)]
    if not stats:
        return ""
    lines = [
        f"- {stat.label}: {f'{stat.before} → ' if stat.before else ''}{stat.value} ({_escaped(stat.sub)})"
        for stat in stats
    ]
    return "\n".join(["## Training", "", *lines])


def _again(run: RunData) -> str:
    """The command, the whole recipe, and what it ran on."""
    parts = ["## To do it again"]
    command = str(run.run.get("command") or "")
    parts += [_fenced(command, "")] if command else []
    parts += (
        ["The recipe as it was resolved:", _fenced(run.config_text.rstrip(), "yaml")]
        if run.config_text
        else []
    )
    made = ", ".join(f"{name} {_escaped(value)}" for name, value in versions(run))
    parts += [f"Made with {made}."] if made else []
    return "\n\n".join(parts)


def _source(run: RunData) -> str:
    task = _mapping(run.config.get("task"))
    return str(next((task[key] for key in KEYS if task.get(key)), "its task"))


def _rewards(reward: object) -> list[str]:
    """Names of the rewards, however the recipe writes them."""
    if isinstance(reward, Mapping):
        return [str(reward["fn"])] if "fn" in reward else [str(name) for name in reward]
    if isinstance(reward, list):
        return [name for one in reward for name in _rewards(one)]
    return [str(reward)]


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _fenced(text: str, language: str) -> str:
    """A block that nothing in the text can close."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _code(text: str) -> str:
    """Text between two backticks."""
    return " ".join(text.replace("`", "'").split())


def _escaped(text: str) -> str:
    """Text in which no Markdown and no HTML acts."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
