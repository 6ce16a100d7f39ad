"""How far the native kernels' predictions are from those of the float32 reference backend, on the same weights.

Run it with the Python that Octavo is installed in; README.md beside this file says what the figures mean.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from answers import Answer, compare, generate, read_questions
from octavo.backends.protocol import Batch, Executor, Float32, LogitRows, StepResult
from octavo.engine.config import KV_ITEMSIZE, EngineConfig
from octavo.engine.loader import open_backend
from octavo.errors import ConfigError, OctavoError
from octavo.models import Model, build
from octavo.text.tokenizer import Tokenizer, load_tokenizer
from octavo.weights.catalogue import DEFAULT_MODEL
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.hub import resolve

ROOT = Path(__file__).resolve().parent.parent

SEQUENCE_TOKENS = 1000
"""Text of one sequence: attention of the reference over longer ones is slow."""

CHUNK_TOKENS = 256
"""Of a step at most."""

CHUNK_ELEMENTS = 2**24
"""Log-probabilities of a step at most, for every one of which some 40 bytes are held."""

console = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Quality:
    """The backends' predictions after every token of a text, compared.

    Attributes:
        text: its name. tokens: of it.
        top1_agreement: fraction of the tokens after which both find the same next token most probable.
        mean_kl, p99_kl: of the Kullback-Leibler divergence of the cpu backend from the reference, in nats: the mean
            over tokens, and what all but 1 % stay below.
        reference_perplexity, perplexity: of the text, to the reference and to the cpu backend.
    """

    text: str
    tokens: int
    top1_agreement: float
    mean_kl: float
    p99_kl: float
    reference_perplexity: float
    perplexity: float


@dataclass(frozen=True, slots=True)
class Text:
    """A text in sequences.

    Attributes:
        prefix: what the model wants at the start of a sequence; it is computed and not counted.
        sequences: the text's tokens, cut into sequences.
    """

    name: str
    prefix: list[int]
    sequences: list[list[int]]

    @property
    def count(self) -> int:
        """Tokens of the text."""
        return sum(map(len, self.sequences))


def main() -> int:
    """Compare, print, and return the exit status."""
    arguments = _arguments()
    try:
        return _compare(arguments)
    except OctavoError as error:
        console.print(str(error), markup=False)
        return 1
    except KeyboardInterrupt:
        return 130


def _compare(arguments: argparse.Namespace) -> int:
    path = resolve(arguments.model, download=False)
    cpu = EngineConfig(
        model=str(path),
        backend="cpu",
        isa=arguments.isa,
        quantization=arguments.quantization,
        kv_cache_dtype=arguments.kv_cache_dtype,
    )
    backend = open_backend(cpu)  # what cannot work is refused before anything is read
    settings = {
        "isa": backend.isa,
        "kv_cache_dtype": backend.kv_cache_dtype,
        "quantization": arguments.quantization,
    }
    title = ", ".join([path.name, *(f"{name} {value}" for name, value in settings.items() if value is not None)])
    found: list[Answer] | list[Quality]
    if arguments.answers:
        found = _answers(cpu)
        table = _answers_table(title, found)
    else:
        found = _qualities(cpu, arguments.tokens)
        table = _table(title, found)
    Console(highlight=False).print(table)
    if arguments.json is not None:
        results = {
            "model": path.name,
            **settings,
            "answers" if arguments.answers else "texts": [asdict(one) for one in found],
        }
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def _qualities(cpu: EngineConfig, tokens: int) -> list[Quality]:
    checkpoint = open_checkpoint(Path(cpu.model))
    model = build(checkpoint.config)
    texts = _texts(load_tokenizer(checkpoint), tokens, model.max_position_embeddings)
    longest = max(len(text.prefix) + len(sequence) for text in texts for sequence in text.sequences)
    executor = _executor(cpu, model, checkpoint, longest)
    reference = _executor(EngineConfig(model=cpu.model, backend="reference"), model, checkpoint, longest)
    return [_quality(text, reference, executor) for text in texts]


def _answers(cpu: EngineConfig) -> list[Answer]:
    tokenizer = load_tokenizer(open_checkpoint(Path(cpu.model)))
    questions = read_questions()
    bounds = {"max_num_seqs": len(questions), "max_model_len": 512, "kv_cache_memory_bytes": 2**28}
    console.print("the cpu backend answers")
    ours = generate(replace(cpu, **bounds), tokenizer, questions)
    console.print("the reference backend answers: some minutes")
    reference = EngineConfig(model=cpu.model, backend="reference", **bounds)
    return compare(tokenizer, questions, generate(reference, tokenizer, questions), ours)


# --- texts ------------------------------------------------------------------------------------------------------------


def _texts(tokenizer: Tokenizer, count: int, max_positions: int) -> list[Text]:
    """The repository's own texts, the first `count` tokens of each; one that is shorter is left out."""
    files = {
        "LICENSE": [ROOT / "LICENSE"],
        "docs, README.md": [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"],
    }
    texts, lengths = [], []
    for name, paths in files.items():
        content = "\n".join(path.read_text(encoding="utf-8") for path in paths)
        tokens = tokenizer.encode(content, add_special_tokens=False)
        complete = tokenizer.encode(content)
        prefix = complete[:1] if complete[0] in tokenizer.special_ids and complete[0] != tokens[0] else []
        lengths.append(f"{name} has {len(tokens):,}")
        if len(tokens) < count:
            console.print(f"{name} is left out: it has {len(tokens):,} tokens of {count:,}")
            continue
        size = min(SEQUENCE_TOKENS, max_positions - len(prefix))
        texts.append(Text(name, prefix, [tokens[start : min(start + size, count)] for start in range(0, count, size)]))
    if not texts:
        raise ConfigError(f"no text has {count:,} tokens: {', '.join(lengths)}; set --tokens lower")
    return texts


# --- backends ---------------------------------------------------------------------------------------------------------


def _executor(config: EngineConfig, model: Model, checkpoint: Checkpoint, max_model_len: int) -> Executor:
    """A backend with the weights loaded and pages for one sequence."""
    console.print(f"loading into the {config.backend} backend")
    pages = -(-max_model_len // config.page_size)
    return open_backend(config).executor(model, checkpoint, pages, max_model_len, None)


def _step(executor: Executor, sequence: Sequence[int], start: int, stop: int) -> StepResult:
    """Compute tokens [start, stop) of a sequence that has the first pages, those before being computed already.

    Returns:
        For each token the log-probability of the one after it in the sequence (of token 0 after the last one), and all
        of the vocabulary, the most probable first.
    """
    count = stop - start
    following = [*sequence[start + 1 : stop + 1], 0][:count]
    batch = Batch(
        tokens=np.array(sequence[start:stop], np.int32),
        positions=np.arange(start, stop, dtype=np.int32),
        slots=np.arange(start, stop, dtype=np.int64),
        query_starts=np.array([0, count], np.int32),
        context_lengths=np.array([stop], np.int32),
        page_table=np.arange(executor.num_pages, dtype=np.int32)[np.newaxis],
        table_rows=np.zeros(1, np.int32),
        copies=np.zeros((0, 2), np.int32),
        logits=LogitRows(
            rows=np.arange(count, dtype=np.int32),
            targets=np.array(following, np.int32),
            positions=np.arange(start + 1, stop + 1, dtype=np.int64),
            seeds=np.zeros(count, np.uint64),
            temperature=np.zeros(count, np.float32),
            top_k=np.zeros(count, np.int32),
            top_p=np.ones(count, np.float32),
            typical_p=np.ones(count, np.float32),
            min_p=np.zeros(count, np.float32),
            num_logprobs=np.full(count, executor.vocab_size, np.int32),
        ),
    )
    return executor.submit(batch).result()


# --- comparison -------------------------------------------------------------------------------------------------------


def _quality(text: Text, reference: Executor, executor: Executor) -> Quality:
    """Both backends over a text, chunk by chunk in turn."""
    chunk = max(1, min(CHUNK_TOKENS, CHUNK_ELEMENTS // executor.vocab_size))
    agreements: list[bool] = []
    divergences: list[float] = []
    exact: list[Float32] = []
    found: list[Float32] = []
    for tokens in text.sequences:
        sequence, skipped = text.prefix + tokens, len(text.prefix)
        for start in range(0, len(sequence), chunk):
            stop = min(start + chunk, len(sequence))
            theirs, ours = (_step(backend, sequence, start, stop) for backend in (reference, executor))
            for row in range(max(skipped - start, 0), stop - start):
                agreements.append(bool(theirs.top_tokens[row, 0] == ours.top_tokens[row, 0]))
                divergences.append(_divergence(theirs, ours, row))
            # Nothing is known to follow a sequence's last token.
            known = slice(max(skipped - start, 0), stop - start - (stop == len(sequence)))
            exact.append(theirs.logprobs[known])
            found.append(ours.logprobs[known])
            console.print(f"{text.name}: {len(divergences):,} of {text.count:,} tokens")
    return Quality(
        text=text.name,
        tokens=len(divergences),
        top1_agreement=float(np.mean(agreements)),
        mean_kl=float(np.mean(divergences)),
        p99_kl=float(np.quantile(divergences, 0.99)),
        reference_perplexity=_perplexity(exact),
        perplexity=_perplexity(found),
    )


def _divergence(reference: StepResult, other: StepResult, row: int) -> float:
    """sum of p * (log p - log q) over the vocabulary, p being the reference's probabilities; in nats."""
    log_p = reference.top_logprobs[row]
    log_q = np.empty_like(log_p)
    log_q[other.top_tokens[row]] = other.top_logprobs[row]
    return float((np.exp(log_p) * (log_p - log_q[reference.top_tokens[row]])).sum(dtype=np.float64))


def _perplexity(logprobs: list[Float32]) -> float:
    return float(np.exp(-np.concatenate(logprobs).mean(dtype=np.float64)))


def _table(title: str, found: Sequence[Quality]) -> Table:
    grid = Table(
        title=title,
        caption="The cpu backend against the reference; KL is in nats.",
        box=SIMPLE,
        pad_edge=False,
        show_edge=False,
    )
    grid.add_column("text")
    for heading in ("tokens", "same top-1", "mean KL", "99 % of KL\nbelow", "perplexity\nreference", "\ncpu"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for quality in found:
        grid.add_row(
            quality.text,
            f"{quality.tokens:,}",
            f"{quality.top1_agreement:.2%}",
            f"{quality.mean_kl:.2e}",
            f"{quality.p99_kl:.2e}",
            f"{quality.reference_perplexity:.3f}",
            f"{quality.perplexity:.3f}",
        )
    return grid


def _answers_table(title: str, found: Sequence[Answer]) -> Table:
    grid = Table(
        title=title,
        caption="Greedy answers of the cpu backend equal to the reference's.",
        box=SIMPLE,
        pad_edge=False,
        show_edge=False,
    )
    for heading in ("questions", "equal", "of"):
        grid.add_column(heading, justify="left" if heading == "questions" else "right")
    kinds = {answer.kind: [other for other in found if other.kind == answer.kind] for answer in found}
    for kind, answers in [*kinds.items(), ("all", list(found))]:
        grid.add_row(kind, str(sum(answer.parts_at is None for answer in answers)), str(len(answers)))
    return grid


# --- command line -----------------------------------------------------------------------------------------------------


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "model", nargs="?", default=DEFAULT_MODEL, help="folder, GGUF file, or a model fetched before (%(default)s)"
    )
    parser.add_argument("--tokens", type=_positive, default=2000, help="of each text, its first ones (%(default)s)")
    parser.add_argument("--answers", action="store_true", help="compare answers to short questions instead of texts")
    parser.add_argument("--kv-cache-dtype", choices=["auto", *KV_ITEMSIZE], default="auto", help="(%(default)s)")
    parser.add_argument("--quantization", choices=["q8", "q4"], help="of weights that are not quantised yet")
    parser.add_argument("--isa", default="auto", help="instruction set of the native kernels (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    return parser.parse_args()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
