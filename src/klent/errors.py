"""Errors for users: what was wrong, where, and how to fix it. The command line shows no traceback."""


class KlentError(Exception):
    """Base of every error that klent raises on purpose."""


class ConfigError(KlentError, ValueError):
    """A recipe, an override or an option that is invalid or contradicts another."""


class DataError(KlentError, ValueError):
    """A prompt file, a column or a reward that cannot be used."""


class TooLong(DataError):
    """A prompt, or prompt and completion, that the model's context or the token budget does not hold."""


class ModelError(KlentError, ValueError):
    """A model folder, tokenizer or download that cannot be used."""


class RunError(KlentError, RuntimeError):
    """A run that cannot start, continue or finish."""


class DivergenceError(RunError):
    """A model whose numbers are no longer finite: nothing can be drawn from it, and no step would mend it."""


class SyncError(RunError):
    """A sampler that does not sample from the policy that is trained; ``cause`` is the fault's name."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class CheckpointError(RunError):
    """A checkpoint that is missing, damaged or could not be written."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none: enough for one sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
