"""Supervised completions come back as the data has them, with the stop token behind."""

import pytest
from tiny import CHAT_TEMPLATE, END, TURN_END, tiny_model, tiny_tokenizer

from klent.errors import DataError
from klent.models.load import LoadedModel
from klent.rollout.dataset_engine import DatasetEngine
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt

LOADED = LoadedModel(tiny_model(), tiny_tokenizer(), "tiny", (TURN_END,))


def prompt(completion: object) -> Prompt:
    return Prompt("rows.jsonl:7", "2+2=", {"completion": completion})


@pytest.mark.parametrize("completion", ["four", [{"role": "assistant", "content": "four"}]])
def test_text_and_conversational_completions_are_the_same(completion):
    (rollout,) = DatasetEngine(LOADED, max_tokens=8).generate([prompt(completion)], group_size=1, seed=0)
    assert rollout.text == "four"
    assert rollout.tokens[-1] == TURN_END
    assert tiny_tokenizer().decode(rollout.tokens[:-1]) == "four"
    assert rollout.logp is None
    assert rollout.entropy is None


def test_a_completion_that_is_too_long_is_refused_and_not_cut():
    with pytest.raises(DataError, match=r"rows\.jsonl:7 has 9 tokens, more than rollout.max_tokens=8"):
        DatasetEngine(LOADED, max_tokens=8).generate([prompt("12345678")], group_size=1, seed=0)


@pytest.mark.parametrize("answer", ["12345678", "123456789", [{"role": "assistant", "content": "12345678"}]])
def test_an_answer_that_was_cut_has_no_end_and_is_as_long_as_may_be(answer):
    row = Prompt("rows.jsonl:7", "2+2=", {"completion": answer, "finish_completion": "length"})
    (rollout,) = DatasetEngine(LOADED, max_tokens=8).generate([row], group_size=1, seed=0)
    assert rollout.finish == "length"
    assert tiny_tokenizer().decode(rollout.tokens) == "12345678"


def test_a_finish_that_is_none_is_refused():
    row = Prompt("rows.jsonl:7", "2+2=", {"completion": "4", "finish_completion": "eos"})
    with pytest.raises(
        DataError, match=r"rows\.jsonl:7: `finish_completion` is 'eos'; it must be \"stop\" or \"length\""
    ):
        DatasetEngine(LOADED, max_tokens=8).generate([row], group_size=1, seed=0)


def test_a_missing_completion_is_named():
    with pytest.raises(DataError, match=r"rows\.jsonl:7 has no text in its `completion` column"):
        DatasetEngine(LOADED, max_tokens=8).generate([prompt(None)], group_size=1, seed=0)


#: writes a thought before the last answer, and an empty one into the prompt where thinking is off
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ '<think>\n\n</think>\n\n' if enable_thinking is false else '' }}{% endif %}"
)

# --- chats ---------------------------------------------------------------------------------------

USER = {"role": "user", "content": "2+2?"}
AGAIN = {"role": "user", "content": "sure?"}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def engine(template: str | None = None) -> DatasetEngine:
    """A model whose texts end in another token than its turns, as Gemma's and Phi's do."""
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.chat_template = template or tokenizer.chat_template
    return DatasetEngine(LoadedModel(tiny_model(), tokenizer, "tiny", (END, TURN_END)), max_tokens=200)


def replay(prompt: object, completion: object, template: str | None = None) -> Episode:
    row = Prompt("rows.jsonl:7", prompt, {"completion": completion})
    (episode,) = engine(template).generate([row], group_size=1, seed=0)
    return episode


def decode(ids: object) -> str:
    return str(tiny_tokenizer().decode(ids))


@pytest.mark.parametrize("completion", ["four", [said("four")], "four<|im_end|>"])
def test_a_turn_ends_with_the_template_s_token_and_a_text_with_eos(completion):
    assert decode(replay([USER], completion).tokens) == "four<|im_end|>"
    assert decode(replay("<|im_start|>user\n?<|im_end|>\n", "four").tokens) == "four<|im_end|>"
    assert decode(replay("2+2=", "four").tokens) == "four<|endoftext|>"


def test_every_turn_of_the_assistant_is_trained_and_nothing_else():
    episode = replay([USER], [said("4"), AGAIN, said("yes")])
    prompt = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    between = "\n<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n"
    assert decode(episode.prompt_ids) == prompt
    assert decode(episode.tokens) == f"4<|im_end|>{between}yes<|im_end|>"
    assert decode(episode.tokens[~episode.acted]) == between
    assert decode(episode.tokens[episode.acted]) == "4<|im_end|>yes<|im_end|>"
    assert decode(episode.tokens[episode.turn == 0]) == "4<|im_end|>"
    assert (episode.turns, episode.text) == (2, "yes")


def test_a_begun_answer_is_ended_by_the_completion():
    episode = replay([USER, said("It ")], [said("is 4"), AGAIN, said("yes")])
    assert decode(episode.prompt_ids).endswith("assistant\nIt ")
    assert decode(episode.tokens[episode.acted]) == "is 4<|im_end|>yes<|im_end|>"


def test_what_the_template_adds_to_an_answer_is_trained_where_the_prompt_has_not_said_it():
    episode = replay([USER], [{**said("4"), "reasoning_content": "two twos"}], THINKING)
    assert decode(episode.tokens) == "<think>\ntwo twos\n</think>\n\n4<|im_end|>"
    row = Prompt("r:1", [USER], {"completion": [said("4")]}, template={"enable_thinking": False})
    (episode,) = engine(THINKING).generate([row], group_size=1, seed=0)
    assert decode(episode.prompt_ids).endswith("assistant\n<think>\n\n</think>\n\n")
    assert decode(episode.tokens) == "4<|im_end|>"


OPENING = CHAT_TEMPLATE.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'")


@pytest.mark.parametrize(
    ("prompt", "completion", "template", "message"),
    [
        ([USER], [said("4"), AGAIN], None, "ends with a message of role 'user'"),
        ("2+2=", [said("4"), AGAIN, said("yes")], None, "3 messages behind a prompt of plain text"),
        ([USER], [said("4")], OPENING, r"does not start the completion the way.*<think>"),
        (
            [USER],
            [{**said("4"), "reasoning_content": "a<|im_end|>"}, AGAIN, said("yes")],
            None,
            r"contains '<\|im_end\|>', which ends a turn",
        ),
        (
            [USER],
            [said("4<|im_end|>"), AGAIN, said("yes")],
            None,
            r"contains '<\|im_end\|>', which ends a turn",
        ),
        (
            [USER],
            [said("4"), AGAIN, said("yes")],
            "{% for m in messages %}{{ m.content }}\n{% endfor %}",
            "apart",
        ),
        ([USER], [said("4")], "{{ raise_exception('no') }}", "refuses these messages: no"),
    ],
)
def test_a_completion_that_cannot_be_trained_is_refused_with_its_line(prompt, completion, template, message):
    with pytest.raises(DataError, match=rf"rows\.jsonl:7.*{message}"):
        replay(prompt, completion, template)


# --- masks against transformers' own, which a template marks with `generation` --------------------------------

MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }}</call>{% endfor %}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALLS = {**said(""), "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}]}
RESULT = {"role": "tool", "content": "4"}
THOUGHT = {**said("yes"), "reasoning_content": "two and two"}
SYSTEM = {"role": "system", "content": "be brief"}


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ([USER], [said("4")]),
        ([USER], [said("4"), AGAIN, said("yes")]),
        ([SYSTEM, USER], [CALLS, RESULT, said("4"), AGAIN, THOUGHT]),
        ([SYSTEM, USER], [THOUGHT, SYSTEM, AGAIN, THOUGHT, AGAIN, said("a\n b ")]),
        ([USER], [AGAIN, said("4")]),
    ],
    ids=["one", "two", "tool and thought", "system between", "user first"],
)
def test_what_is_trained_is_what_transformers_marks_as_the_assistants(prompt, completion):
    """Tokens, mask and so the loss: of every turn, with its end, and of nothing else."""
    tokenizer = tiny_tokenizer()
    marked = tokenizer.apply_chat_template(
        [*prompt, *completion], chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True
    )
    episode = replay(prompt, completion, MARKED)
    ids = episode.prompt_ids + episode.tokens.tolist()
    acted = [False] * len(episode.prompt_ids) + episode.acted.tolist()
    assert ids == marked["input_ids"][: len(ids)]
    assert acted == [bool(mask) for mask in marked["assistant_masks"][: len(ids)]]
    assert not any(
        marked["assistant_masks"][len(ids) :]
    )  # a line break behind the last turn, which nobody samples
