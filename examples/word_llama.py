"""A Llama of 0.1 million parameters that has read nothing, with a token for each word of some texts."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<end>"
CONTROL = ("<pad>", "<unk>", END)


def make_word_llama(texts: Iterable[str], folder: Path, seed: int, *, word: str, longest: int) -> None:
    """Write the model and its tokenizer.

    Args:
        texts: whose words are the vocabulary; other words are ``<unk>``.
        folder: where to.
        seed: of the weights.
        word: regular expression of a token.
        longest: positions.
    """
    cut = pre_tokenizers.Split(Regex(word), behavior="isolated")
    words = sorted({piece for text in texts for piece, _ in cut.pre_tokenize_str(text)})
    vocabulary = {name: number for number, name in enumerate([*CONTROL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = cut
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in CONTROL])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token=END
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=longest,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
