"""What a model reads: text, messages, and everything that a chat template is given."""

import datetime
import sys
from types import SimpleNamespace

import pytest
from tiny import CONTEXT, END, TURN_END, tiny_model, tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from klent.errors import DataError, ModelError
from klent.models.chat import (
    context_length,
    reads_clock,
    render_prompt,
    stop_ids,
    turn_end,
    unheard_tools,
)

USER = {"role": "user", "content": "1+1?"}
#: writes an empty thought before an answer that has none, as Qwen3's does, and tools, calls and names
THINKING = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' ' + m.name if m.name else '' }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls else '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ '<think>\n\n</think>\n\n' if enable_thinking is false else '' }}{% endif %}"
)


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_messages_go_through_the_template_and_text_does_not() -> None:
    tokenizer = tiny_tokenizer()
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    ids = render_prompt(tokenizer, chat)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(render_prompt(tokenizer, "1+1=")) == "1+1="
    begun = [*chat, {"role": "assistant", "content": "It is"}]
    assert tokenizer.decode(render_prompt(tokenizer, begun)).endswith("<|im_start|>assistant\nIt is")


def test_text_gets_the_bos_token_of_a_tokenizer_that_has_one() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", END)]
    )
    assert render_prompt(tokenizer, "ab") == [END, *tiny_tokenizer()("ab").input_ids]


def test_prompts_that_cannot_be_rendered() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(DataError, match="the prompt is empty; give it some text"):
        render_prompt(tokenizer, "")
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ModelError, match="the chat template refuses these messages: roles must alternate"):
        render_prompt(tokenizer, [{"role": "user", "content": "x"}])
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match=r"this model has no chat template.*as plain text"):
        render_prompt(tokenizer, [{"role": "user", "content": "x"}])
    assert render_prompt(tokenizer, "x") == tokenizer("x").input_ids


def test_stop_tokens_come_from_three_places() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    letter = tokenizer.convert_tokens_to_ids("z")
    assert stop_ids(model, tokenizer) == (END, TURN_END)
    model.generation_config.eos_token_id = None
    assert stop_ids(model, tokenizer) == (TURN_END,)
    model.generation_config.eos_token_id = letter
    assert stop_ids(model, tokenizer) == (TURN_END, letter)
    tokenizer.eos_token = "<|endoftext|>"
    assert stop_ids(model, tokenizer) == (END, TURN_END, letter)  # the template's end of turn
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    assert stop_ids(model, tokenizer) == (END, letter)  # a newline is text
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert stop_ids(model, tokenizer) == (END, letter)


def test_context_length() -> None:
    assert context_length(tiny_model()) == CONTEXT
    unlimited = SimpleNamespace(config=SimpleNamespace(get_text_config=SimpleNamespace))
    assert context_length(unlimited) == sys.maxsize


def test_a_prefix_is_not_doubled_and_nothing_is_appended() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>",
        special_tokens=[("<|endoftext|>", END), ("<|im_end|>", TURN_END)],
    )
    plain = tiny_tokenizer()("ab").input_ids
    assert render_prompt(tokenizer, "ab") == [END, *plain]
    assert render_prompt(tokenizer, "<|endoftext|>ab") == [END, *plain]
    assert render_prompt(tokenizer, "<|endoftext|>ab<|im_end|>") == [END, *plain, TURN_END]


def test_tools_that_the_template_says_nothing_of() -> None:
    tools = {"tools": [{"name": "add"}]}
    assert unheard_tools(tiny_tokenizer(), [USER], tools)
    assert not unheard_tools(tokenizer_with(THINKING), [USER], tools)
    assert not unheard_tools(tiny_tokenizer(), [USER], {"tools": []})
    assert not unheard_tools(tiny_tokenizer(), "1+1?", tools)  # text is as it is


def test_fields_tools_and_arguments_reach_the_template() -> None:
    tokenizer = tokenizer_with(THINKING)
    chat = [
        {"role": "user", "content": "x", "name": "Ann"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]},
        {"role": "tool", "content": "2"},
    ]
    given = {"tools": [{"name": "add"}], "enable_thinking": False}
    assert tokenizer.decode(render_prompt(tokenizer, chat, given)) == (
        '<|im_start|>system\n[{"name": "add"}]<|im_end|>\n<|im_start|>user Ann\nx<|im_end|>\n'
        '<|im_start|>assistant\n[{"name": "add"}]<|im_end|>\n<|im_start|>tool\n2<|im_end|>\n'
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_parts_of_text_are_joined_where_the_template_cannot_read_them() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]}]
    tokenizer = tiny_tokenizer()
    assert render_prompt(tokenizer, parts) == render_prompt(tokenizer, [USER])
    printing = tokenizer_with("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert printing.decode(render_prompt(printing, parts)) == "1+1?"  # and not the list as Python prints it
    reading = tokenizer_with(
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{{ m.content | map(attribute='text') | join('') }}{{ m.content | length if m.content[1:] else '' }}"
        "{% endif %}{% endfor %}"
    )
    assert reading.decode(render_prompt(reading, parts)) == "1+1?2"


def test_a_begun_answer_is_continued_or_refused() -> None:
    tokenizer = tokenizer_with(THINKING)
    begun = [USER, {"role": "assistant", "content": "It is "}]
    with pytest.raises(ModelError, match=r"the chat template rewrites it.*task\.template"):
        render_prompt(tokenizer, begun)
    ids = render_prompt(tokenizer, begun, {"enable_thinking": False})  # the thought opens the turn
    assert tokenizer.decode(ids).endswith("assistant\n<think>\n\n</think>\n\nIt is ")
    with pytest.raises(ModelError, match="the chat template rewrites it"):
        render_prompt(tokenizer, [USER, {"role": "assistant", "content": "<think>\nLet me"}])
    opening = tokenizer_with(
        tiny_tokenizer().chat_template.replace(
            "'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'"
        )
    )
    ids = render_prompt(opening, [USER, {"role": "assistant", "content": "<think>\nLet me"}])
    assert opening.decode(ids).endswith("<|im_start|>assistant\n<think>\nLet me")
    with pytest.raises(ModelError, match="the chat template rewrites it"):
        render_prompt(opening, [USER, {"role": "assistant", "content": "Let me"}])


def test_a_date_is_that_of_the_run() -> None:
    tokenizer = tokenizer_with("{{ strftime_now('%d %b %Y') }}{{ messages[0].content }}")
    assert reads_clock(tokenizer)
    assert not reads_clock(tiny_tokenizer())
    assert tokenizer.decode(render_prompt(tokenizer, [USER], {"clock": "2025-02-03"})) == "03 Feb 20251+1?"
    today = datetime.datetime.now().strftime("%d %b %Y")
    assert tokenizer.decode(render_prompt(tokenizer, [USER])) == f"{today}1+1?"


def test_the_end_of_a_turn_is_the_template_s() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    assert turn_end(tokenizer) == TURN_END
    tokenizer.chat_template = None
    assert turn_end(tokenizer) is None
