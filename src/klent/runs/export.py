"""A checkpoint as a model folder, as ``final/`` is one: for sampling, evaluation and other programs."""

from collections.abc import Callable
from pathlib import Path

from klent.config import load_recipe
from klent.errors import CheckpointError, ConfigError
from klent.kit.names import nearest
from klent.models.gguf import refuse_gguf
from klent.models.licence import licence_file, licence_of
from klent.models.load import DTYPES, load_policy
from klent.models.locate import locate_model
from klent.models.save import save_model
from klent.runs.card import model_card
from klent.runs.checkpoint import load_step
from klent.runs.denoisers import export_denoiser
from klent.runs.fingerprint import take_fingerprint
from klent.runs.robots import export_robot
from klent.runs.state import policy_of, take_weights

EXPORTERS = {"denoiser": export_denoiser, "gaussian": export_robot}
"""Who writes the folder of a policy that is no language model."""


def export_checkpoint(
    run: Path,
    folder: Path | None = None,
    *,
    step: int | None = None,
    merge: bool = False,
    dtype: str | None = None,
    gguf: bool = False,
    on_damage: Callable[[str], None],
) -> Path:
    """Write the weights of a checkpoint as a plain Hugging Face folder with a model card, whole or not at all.

    An adapter is added to the weights in float32, and the sum is rounded once to the type that is written.

    Args:
        run: the run's folder, also while it runs.
        folder: where to; None = ``RUN/step-N``, where `klent eval` finds the run's recipe.
        step: of the checkpoint; None = the newest that is intact.
        merge: False = an adapter is also written by itself, in ``adapter/``.
        dtype: of the written weights; None = that of the recipe's ``precision.weights``.
        gguf: also write ``model.gguf`` into the folder.
        on_damage: told of each damaged checkpoint that is passed over, in one line.

    Raises:
        CheckpointError: there is no such checkpoint, or the run's model is not the one that it was made with.
        ConfigError: the folder exists; ``merge`` where there is no adapter; an unknown ``dtype``; ``gguf`` of what is
            no language model.
        ModelError: ``gguf`` of a model or tokenizer whose layout is not known.
    """
    recipe = load_recipe(run / "config.yaml")
    if merge and recipe.lora is None:
        raise ConfigError(
            f"--merge adds an adapter to the weights, and {run} trained all weights (lora: null). Leave it out"
        )
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(
            f"--dtype {dtype}: no such type{nearest(dtype, DTYPES)}; there are {', '.join(DTYPES)}"
        )
    checkpoint = load_step(run, step, on_damage=on_damage)
    target = folder or run / f"step-{checkpoint.step}"
    if target.exists():
        raise ConfigError(f"{target} exists already; name another folder, or remove it")
    if gguf and (recipe.policy.scores or not recipe.policy.language):
        kind = "reward model" if recipe.policy.scores else f"{recipe.policy.kind} policy"
        raise ConfigError(f"--gguf is for language models, and {run} trained a {kind}. Leave it out")
    if recipe.policy.language:
        locate_model(recipe.model)  # refuses in words what the fingerprint passes over
    before = checkpoint.state.get("fingerprint") or {}
    now = take_fingerprint({"model": recipe.model}).content.get("model")
    then = before.get("content", {}).get("model")
    if then is not None and now != then:
        raise CheckpointError(
            f"{recipe.model} is not the model that {checkpoint.path} was made with: its files have changed. "
            "Put them back"
        )
    remedy = f"Put back model and lora in {run / 'config.yaml'}"
    if not recipe.policy.language:
        EXPORTERS[recipe.policy.kind](
            recipe, lambda trainable: take_weights(checkpoint, trainable, remedy), target
        )
        return target
    kept = recipe.precision.weights
    loaded = load_policy(
        recipe.model,
        dtype=kept if dtype in (None, kept) else "float32",
        trust_remote_code=recipe.trust_remote_code,
        attention=recipe.attention,
        lora=recipe.lora,
        seed=recipe.seed,
        scores=recipe.policy.scores,
    )
    if gguf:
        refuse_gguf(loaded.model.config, loaded.tokenizer)
    trainable = {name: p for name, p in loaded.model.named_parameters() if p.requires_grad}
    take_weights(policy_of(checkpoint), trainable, remedy)
    base = Path(loaded.source)
    card = model_card(run, checkpoint.step, licence=licence_of(recipe.model, base))
    terms = licence_file(base)
    save_model(
        loaded.model,
        loaded.tokenizer,
        target,
        dtype=None if dtype in (None, kept) else dtype,
        adapter_too=not merge,
        gguf=recipe.name if gguf else None,
        texts={"README.md": card, **({"LICENSE": terms.read_text("utf-8", "replace")} if terms else {})},
    )
    return target
