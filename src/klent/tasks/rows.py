"""One row of data as a prompt: columns by name, a conversation cut before its last answer, everything checked."""

from collections.abc import Callable, Sequence
from pathlib import Path

from klent.config import FileSettings
from klent.errors import DataError
from klent.kit.names import nearest
from klent.streams.prompt import Messages, Prompt
from klent.tasks.columns import Renamed
from klent.tasks.lines import Row
from klent.tasks.messages import checked_completion, checked_prompt, checked_tools
from klent.tasks.preferences import split_pair
from klent.tasks.sharegpt import with_messages
from klent.tasks.sources import Rows, open_rows

Reader = Callable[[Rows], Rows]
_USUAL = ("question", "problem", "instruction", "query", "input", "text")  # what others call a prompt


def as_they_are(rows: Rows) -> Rows:
    """No change."""
    return rows


def open_prompt_rows(
    data: str, split: str, section: FileSettings, base: Path, *, read: Reader = as_they_are, key: str
) -> Rows:
    """The rows of a file or dataset with the names of ``task.columns``.

    Args:
        data, split, base, key: as of :func:`klent.tasks.sources.open_rows`.
        section: the other keys.
        read: makes data of what the source holds.
    """
    rows = open_rows(data, split, section.subset, base, key=key)
    return read(Renamed(rows, section.columns) if section.columns else rows)


class PromptReader:
    """Makes prompts of rows.

    Args:
        section: which columns to read, and how.
        needed: columns that every row must have, such as ``completion``.
    """

    def __init__(self, section: FileSettings, needed: Sequence[str] = ()) -> None:
        self._section, self._needed = section, needed
        self._column, self._plain = section.prompt_column, not (needed or section.system or section.paired)

    def told_apart_by(self, row: Row, where: str) -> object:
        """The prompt of a row, checked; of logged play the whole episode, as many begin with the same opening."""
        text = row.get(self._column)
        if type(text) is str and self._is_plain(row, text):
            return text
        prompt = self.prompt(row, where)
        logged = "trajectory" in self._section.completions
        return [prompt.prompt, prompt.columns["trajectory"]] if logged else prompt.prompt

    def _is_plain(self, row: Row, text: str) -> bool:
        """Whether a row is a text and columns for rewards, in which nothing can be wrong."""
        return (
            self._plain
            and self._column != "messages"
            and not (text.isspace() or not text)
            and "prompts" not in row
            and "completions" not in row
            and "tools" not in row
        )

    def prompt(self, source: Row, where: str) -> Prompt:
        """A row as a prompt.

        Raises:
            DataError: it is none, with its place and the reason.
        """
        section = self._section
        if section.paired:
            row, column = split_pair(source, section.prompt_column, where), section.prompt_column
        else:
            row, column = _as_prompt(source, section.prompt_column, where)
        if column == "messages" and "completion" in self._needed and row.get("completion") is None:
            raise DataError(
                f"{where}: 'messages' has no message of the assistant after the user's last one: there is "
                "nothing to train. Add the answer, or remove the row"
            )
        for name in (column, *self._needed):
            if row.get(name) is None:
                raise DataError(_lacks(row, name, where, is_prompt=name == column))
        prompt = checked_prompt(row[column], f"{where}: {column!r}")
        for name in self._needed:
            row[name] = checked_completion(row[name], f"{where}: {name!r}", silent=name == "trajectory")
        template = dict(section.rendering)
        if row.get("tools"):
            template["tools"] = checked_tools(row["tools"], f"{where}: 'tools'")
        others = {name: value for name, value in row.items() if name not in (column, "prompt")}
        for name in sorted(others.keys() & {"prompts", "completions"}):
            raise DataError(
                f"{where}: a column cannot be called {name!r}: under this name rewards get the prompts or "
                "completions of the step. Rename or remove it"
            )
        return Prompt(where, with_system(prompt, section.system), others, template=template)


def _lacks(row: Row, name: str, where: str, *, is_prompt: bool) -> str:
    """What to say of a column that is missing, or empty."""
    if name in row:
        return f"{where}: no {name!r}: the column has no value in this row. Fill it in, or remove the row"
    columns = ", ".join(row) or "none"
    usual = next((other for other in _USUAL if other in row), "NAME") if is_prompt else "NAME"
    key = "task.prompt_column" if is_prompt and name != "prompt" else f"task.columns.{name}"
    return (
        f"{where}: no {name!r}{nearest(name, row)}; columns are: {columns}; name the right one: {key}={usual}"
    )


def _as_prompt(row: Row, column: str, where: str) -> tuple[Row, str]:
    """The row with its prompt, and the prompt's column; a whole conversation is cut before its last answer."""
    whole = "messages"
    if column in ("prompt", whole) and "prompt" not in row and row.get(whole) is None:
        row = with_messages(row, where)
    if column not in ("prompt", whole) or "prompt" in row or row.get(whole) is None:
        return dict(row), column
    chat = checked_prompt(row[whole], f"{where}: {whole!r}")
    if isinstance(chat, str):
        return dict(row), column
    cut = 1 + max((i for i, message in enumerate(chat) if message["role"] == "user"), default=-1)
    if cut == 0:
        raise DataError(f"{where}: {whole!r} has no user message; add one, or remove the row")
    rest = {name: value for name, value in row.items() if name != whole}
    answer = {"completion": chat[cut:]} if chat[cut:] else {}
    return {**rest, whole: chat[:cut], **answer}, whole


def with_system(prompt: str | Messages, system: str | None) -> str | Messages:
    """A prompt behind a system message, unless it has one."""
    if not system:
        return prompt
    messages: Messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if messages[0]["role"] in ("system", "developer"):
        return messages
    return [{"role": "system", "content": system}, *messages]
