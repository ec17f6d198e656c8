"""A small random language model, built in memory: what most tests train, sample and save.

    from tiny import tiny_folder, tiny_model, tiny_tokenizer

Every printable ASCII or Latin-1 character is one token, so a test can count tokens by counting characters,
and any such text comes back from encoding and decoding as it was.
"""

from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

SPECIAL = ["<pad>", "<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PAD, UNK, END, TURN_START, TURN_END = range(len(SPECIAL))
CHARACTERS = ["\n", "\t", *map(chr, range(0x20, 0x7F)), *map(chr, range(0xA0, 0x100))]
VOCABULARY = [*SPECIAL, *CHARACTERS]
CONTEXT = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, and a chat template; ``<|im_end|>`` ends a turn, ``<|endoftext|>`` a text."""
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """As the tiny one, but ``a`` and ``b`` merge, and ``ab`` with ``c``; ``<think>`` is a token and not special."""
    merged = {token: index for index, token in enumerate((*VOCABULARY, "ab", "abc"))}
    tokenizer = Tokenizer(models.BPE(vocab=merged, merges=[("a", "b"), ("ab", "c")], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_model(seed: int = 0, **changes: object) -> LlamaForCausalLM:
    """A two-layer Llama of 25 thousand float32 parameters; the global generator is left alone."""
    usual = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "pad_token_id": PAD,
        "bos_token_id": None,
        "eos_token_id": TURN_END,
        "attn_implementation": "sdpa",
    }
    config = LlamaConfig(**{**usual, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=[TURN_END, END], pad_token_id=PAD)
    return model.eval()


def tiny_folder(path: Path, seed: int = 0) -> Path:
    """The tiny model and its tokenizer as a plain Hugging Face folder at ``path``."""
    tiny_model(seed).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


TEXT = "Ann's 12 cats, 345 dogs; naïve\n\n  and <think>so</think> on. It's 7 + 7 = 14\t!<|im_end|>"
"""What :func:`byte_level` learns its merges from: everything that tokenizers split differently."""

SPLITS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def byte_level(splits: str = "gpt-2", **model: object) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 291 tokens; two are special, and ``<think>`` is added and is not."""
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = SPLITS[splits]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT, "the cats and the dogs and 12 345 14 on"] * 4, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
