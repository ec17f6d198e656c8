"""LoRA adapters that lie in a folder of their own."""

from klent.errors import ModelError
from klent.models.load import LoadedModel


def with_adapter(loaded: LoadedModel, folder: str) -> LoadedModel:
    """A model with a LoRA adapter merged into its weights.

    Raises:
        ModelError: peft is missing, or the folder holds no adapter of this model.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelError("an adapter needs peft: pip install 'klent[lora]'") from error
    try:
        model = PeftModel.from_pretrained(loaded.model, folder).merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"cannot put the adapter {folder} on {loaded.source}: {reason}") from error
    return LoadedModel(model.eval(), loaded.tokenizer, loaded.source, loaded.stop_ids)
