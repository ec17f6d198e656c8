"""The transformers engine: it samples with the model that is being trained, in the same process.

One prefill a prompt, then its whole group decodes together; a finished row leaves the batch. The
sampling distribution of every token is at hand while it is drawn, so its log-probability and entropy cost
nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from klent.errors import DataError, ModelError, TooLong
from klent.kit.text import plural
from klent.models.chat import context_length, render_prompt
from klent.models.load import LoadedModel
from klent.policies.policy import Policy
from klent.rollout.decoding import Decoder, DecoderKind, choose_decoder
from klent.rollout.engine import SyncCertificate
from klent.rollout.extending import ExtendingDecoder, Kept, can_extend, keep_row
from klent.rollout.graph import GraphSampler, Reader
from klent.rollout.how import Draw, How
from klent.rollout.memory import Rows
from klent.rollout.recordable import Decoding, choose_sampler
from klent.rollout.rows import Asked, Memory, Row, found_in
from klent.rollout.sampling import sample_tokens
from klent.streams.episode import Episode
from klent.streams.prompt import Prompt


@dataclass(frozen=True)
class SamplingOptions:
    """How completions are drawn; the distribution that results is the one that ``logp`` of an episode is about.

    Attributes:
        max_tokens: the longest completion, tokens.
        temperature: divides the logits; 0 is greedy.
        top_p, top_k: truncation, see :func:`klent.rollout.sampling.sample_tokens`; 1.0 and 0 switch it off.
        stop: strings that end a completion, beside the model's own stop tokens; not part of the text.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()


class TransformersEngine:
    """An :class:`klent.rollout.engine.Engine` over a transformers model.

    Args:
        loaded: the model, its tokenizer and its stop tokens; the weights are read at every call, so a trained model
            needs no synchronisation.
        options: how to sample.
        rows: the largest number of completions that decode together; more prompts are taken in turns. None = as many
            as memory holds. What is said does not depend on it.
        progress: called with (completions done, completions asked for).
        decoding: ``eager``, step by step; ``graph``, by :class:`klent.rollout.graph.GraphSampler`, which a GPU
            records, where the model allows it; ``auto`` is ``graph`` on a GPU.
        note: told in words of rows that were counted or did not fit, and of a model that cannot be recorded.
    """

    unrecorded: str | None = None
    """Why a device cannot draw the tokens by itself; None = it can, where the model allows it."""

    def __init__(
        self,
        loaded: LoadedModel,
        options: SamplingOptions,
        *,
        rows: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        decoding: Decoding = "auto",
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.loaded = loaded
        self.options = options
        self.progress = progress
        self.decoding = decoding
        self.note = note or (lambda text: None)
        self.rows = Rows(rows, self.note)
        self.sampler: GraphSampler | None = None
        self.limit = context_length(loaded.model)
        self.kind: DecoderKind | None = None  # asked of the model when first needed
        self.extends: bool | None = None  # likewise
        self._kept: Memory | None = None

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], *, group_size: int, seed: int) -> list[Episode]:
        """``group_size`` completions of every prompt; see :class:`klent.rollout.engine.Engine`.

        Every completion owns a row of uniform numbers drawn from ``seed``, so that batching, length and the
        fate of its neighbours do not touch what it says.
        """
        encoded = [self._encode(prompt) for prompt in prompts]
        generator = torch.Generator().manual_seed(seed)
        numbers = [prompt.number + 1 for prompt in prompts if prompt.number is not None]
        count = max([len(prompts), *numbers]) * group_size
        uniform = torch.rand(count, self.options.max_tokens, generator=generator)
        rows: list[Row] = []
        known, self._kept = self._kept, None if self._kept is None else {}
        was_training = self.loaded.model.training
        self.loaded.model.eval()
        try:
            self._prepare()
            asked = Asked(prompts, encoded, group_size, uniform, known)
            for chosen in self._batches(encoded, group_size):
                rows += self._answer(chosen, asked)
                if self.progress:
                    self.progress(len(rows), len(prompts) * group_size)
        finally:
            self.loaded.model.train(was_training)
        rows.sort(key=lambda row: row.number)
        return [self._episode(row, prompts[row.prompt], encoded[row.prompt]) for row in rows]

    def _answer(self, chosen: Sequence[int], asked: Asked) -> list[Row]:
        """The completions of these prompts, taken in halves where they do not fit into memory together."""
        try:
            return self._answer_together(chosen, asked)
        except torch.OutOfMemoryError:
            if len(chosen) == 1:
                raise
        half = len(chosen) // 2  # the exception, and the memory that its frames hold, is gone here
        self.rows.at_most(half * asked.group_size)
        if self.sampler is not None:
            self.sampler.release()
        torch.cuda.empty_cache()
        return self._answer(chosen[:half], asked) + self._answer(chosen[half:], asked)

    def _answer_together(self, chosen: Sequence[int], asked: Asked) -> list[Row]:
        prompts, ids = [asked.prompts[i] for i in chosen], [asked.encoded[i] for i in chosen]
        kept = found_in(asked.known, prompts, asked.group_size)
        wanted = self._rows(chosen, prompts, ids, asked.group_size, kept=bool(kept))
        if self.sampler is not None and self._kept is None:
            return self._sample(self.sampler, wanted, prompts, ids, asked)
        decoder = self._extending(ids, kept) if kept else self._decoder(prompts, ids, asked.group_size)
        return self._decode(wanted, decoder, asked.uniform, asked.encoded)

    def check(self, prompt: Prompt) -> None:
        """Refuse a prompt that cannot be answered.

        Raises:
            KlentError: the template refuses it; :class:`klent.errors.TooLong` where it does not fit.
        """
        self._encode(prompt)

    def sync(self, policy: Policy) -> SyncCertificate | None:
        """Nothing to do or to certify: the engine reads the trainer's own tensors at every call."""
        return None

    def _encode(self, prompt: Prompt) -> list[int]:
        ids = prompt.token_ids
        if ids is None:
            try:
                ids = render_prompt(self.loaded.tokenizer, prompt.prompt, prompt.template)
            except (ModelError, DataError) as error:
                raise type(error)(f"{prompt.id}: {error}") from error
        most = self._room(prompt)
        room = self.limit - most
        if len(ids) > room:
            key, longest = "rollout.max_tokens", f"rollout.max_tokens={most}"
            if prompt.room is not None:
                key = "turn_tokens of the game (in task or eval.play, or --turn-tokens)"
                longest = f"turns of up to {plural(most, 'token')}"
            raise TooLong(
                f"prompt {prompt.id} has {len(ids)} tokens; with {longest} the model's context of {self.limit} "
                f"leaves {room}. Shorten the prompt, lower {key}, or set task.too_long=drop."
            )
        if not ids:
            raise DataError(f"prompt {prompt.id} is empty once tokenised; remove it from the data.")
        self.loaded.check_ids(ids, f"prompt {prompt.id}")
        return ids

    def _room(self, prompt: Prompt) -> int:
        """The most tokens that an answer may have."""
        most = self.options.max_tokens
        return most if prompt.room is None else min(most, prompt.room)

    def _rows(
        self,
        chosen: Sequence[int],
        prompts: Sequence[Prompt],
        ids: Sequence[list[int]],
        group_size: int,
        *,
        kept: bool,
    ) -> list[Row]:
        """The rows of these prompts, the ``chosen`` of the question; a group reads its prompt once."""
        rows = []
        for i, prompt, read in zip(chosen, prompts, ids, strict=True):
            first = prompt.drawn_at(i) * group_size
            new = len(read) - (prompt.read if kept else 0)
            for k in range(group_size):
                row = Row(i * group_size + k, i, self._room(prompt), first + k, 0 if k else new)
                rows.append(row)
        return rows

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """While this lasts, keys and values of a row are kept, for a prompt that begins with it: an episode."""
        self._prepare()
        if self.extends is None:
            self.extends = self._can_extend()
            if self.extends and self.sampler is not None:
                self.note(
                    "rollout.decoding: turns reuse keys and values, and decode step by step from Python"
                )
        self._kept = {} if self.extends else None
        try:
            yield
        finally:
            self._kept = None

    def _can_extend(self) -> bool:
        assert self.kind is not None
        return can_extend(self.loaded.model, self.kind)

    def _extending(self, ids: Sequence[list[int]], kept: Sequence[tuple[Kept, ...]]) -> Decoder:
        """What goes on from kept rows, in place of what reads them from the start."""
        mine = [one for (one,) in kept]
        return ExtendingDecoder(self.loaded.model, ids, mine, pad=self.loaded.tokenizer.pad_token_id)

    def _caching(self, decoder: Decoder) -> tuple[Decoder, ...]:
        """The decoders that hold keys and values, one for each model."""
        return (decoder,)

    def _keep(self, decoder: Decoder, index: int, row: Row, encoded: Sequence[list[int]]) -> None:
        """Keep what a row that has ended leaves; its last token was drawn and not read."""
        if self._kept is None:
            return
        kept = [keep_row(part, index) for part in self._caching(decoder)]
        if None not in kept:
            whole = tuple(one for one in kept if one is not None)
            self._kept[(*encoded[row.prompt], *row.tokens[:-1])] = whole

    def _batches(self, encoded: list[list[int]], group_size: int) -> Iterator[list[int]]:
        """Prompts of similar length together, as many as fit into ``rows``, in parts of one size."""
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        longest = max(map(len, encoded), default=1)
        width = max(
            1,
            self.rows.at_once(self.loaded.model, longest, self.options.max_tokens, group_size) // group_size,
        )
        width = -(-len(order) // max(1, -(-len(order) // width)))
        for start in range(0, len(order), width):
            yield order[start : start + width]

    def _prepare(self) -> None:
        """Ask the model once how it decodes."""
        if self.kind is None:
            self.kind = self._choose_decoder()
            self.sampler = choose_sampler(
                self.loaded.model,
                pad=self.loaded.tokenizer.pad_token_id,
                stop_ids=self.loaded.stop_ids,
                decoding=self.decoding,
                note=self.note,
                how=self._how(),
                beside=self._reader_beside(),
                refusal=self.unrecorded,
            )

    def _how(self) -> How:
        """How a device draws."""
        options = self.options
        return Draw(options.temperature, options.top_p, options.top_k)

    def _reader_beside(self) -> Reader | None:
        """A further model that the draw asks for."""
        return None

    def _read_beside(
        self, prompts: Sequence[Prompt], group_size: int
    ) -> tuple[Sequence[Sequence[int]], Tensor | None]:
        """The prompts as that model reads them, and a number of each row for the draw."""
        return (), None

    def _sample(
        self,
        sampler: GraphSampler,
        rows: list[Row],
        prompts: Sequence[Prompt],
        ids: list[list[int]],
        asked: Asked,
    ) -> list[Row]:
        """As :meth:`_decode`, on the device."""
        beside, share = self._read_beside(prompts, asked.group_size)
        said = sampler(
            ids,
            group_size=asked.group_size,
            uniform=asked.uniform[[row.draws for row in rows]],
            rooms=[row.room for row in rows],
            how=self._how(),
            meets_stop=self._meets_stop if self.options.stop else None,
            beside=beside,
            share=share,
        )
        for row, tokens, numbers, count, stopped in zip(
            rows, said.tokens, said.numbers, said.lengths, said.stopped, strict=True
        ):
            row.tokens, row.stopped = tokens[:count].tolist(), stopped
            row.table = numbers[:count].clone()
        return rows

    def _choose_decoder(self) -> DecoderKind:
        return choose_decoder(self.loaded.model)

    def _decoder(self, prompts: Sequence[Prompt], ids: Sequence[list[int]], group_size: int) -> Decoder:
        """What gives the logits that the tokens of these prompts are drawn from."""
        assert self.kind is not None
        pad = self.loaded.tokenizer.pad_token_id
        return self.kind(self.loaded.model, ids, group_size=group_size, pad=pad)

    def _draw(self, decoder: Decoder, logits: Tensor, uniform: Tensor) -> tuple[Tensor, ...]:
        """A token for each row, ``[R]``, then columns of what is known of it, the first as of ``Sampled``."""
        options = self.options
        return sample_tokens(
            logits,
            uniform,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
        )

    def _decode(
        self, rows: list[Row], decoder: Decoder, uniform: Tensor, encoded: Sequence[list[int]]
    ) -> list[Row]:
        device = self.loaded.model.device
        logits = decoder.start()
        stop_ids = torch.tensor(sorted(self.loaded.stop_ids), device=device)
        alive = rows
        for position in range(max(row.room for row in rows)):
            u = uniform[[row.draws for row in alive], position]
            drawn = self._draw(decoder, logits, u.to(device))
            token = drawn[0]
            ended = torch.isin(token, stop_ids).tolist()
            going = []
            values = zip(*(column.tolist() for column in drawn), strict=True)
            for index, (row, stopped, (token_id, *its)) in enumerate(zip(alive, ended, values, strict=True)):
                row.tokens.append(token_id)
                row.numbers.append(tuple(its))
                row.stopped = stopped or self._meets_stop(row.tokens)
                if not row.stopped and len(row.tokens) < row.room:
                    going.append(index)
                else:
                    self._keep(decoder, index, row, encoded)
            if not going:
                break
            if len(going) < len(alive):
                order = decoder.keep(going)
                alive, token = [alive[i] for i in order], token[order]
            logits = decoder.step(token)
        return rows

    def _text(self, tokens: list[int]) -> str:
        text = self.loaded.tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)

    def text_of(self, tokens: list[int]) -> str:
        """What a verifier reads of a completion: without its stop token, and up to its stop string."""
        text = self._text(tokens[:-1] if tokens[-1] in self.loaded.stop_ids else tokens)
        for stop in self.options.stop:
            text = text.split(stop, 1)[0]
        return text

    def _meets_stop(self, tokens: list[int]) -> bool:
        """Whether a stop string has just come to stand in the text; only the tail can have changed."""
        if not self.options.stop:
            return False
        tail = self._text(tokens[-(max(map(len, self.options.stop)) + 8) :])
        return any(stop in tail for stop in self.options.stop)

    def _episode(self, row: Row, prompt: Prompt, prompt_ids: list[int]) -> Episode:
        logp, entropy, renyi, collision_logp, *_ = row.columns()
        return Episode(
            prompt=prompt,
            prompt_ids=prompt_ids,
            tokens=torch.tensor(row.tokens),
            logp=logp,
            entropy=entropy,
            renyi=renyi,
            collision_logp=collision_logp,
            text=self.text_of(row.tokens),
            finish="stop" if row.stopped else "length",
            prefill=row.read,
        )
