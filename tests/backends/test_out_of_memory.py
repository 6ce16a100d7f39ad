"""A step that finds no memory fails by itself: the process lives, and the next step computes what it always does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("octavo.backends.cpu._native", reason="the native kernels are not built")
if not sys.platform.startswith("linux"):
    pytest.skip("address space is limited on Linux alone", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]

SETUP = """
import resource
import numpy as np
from octavo.backends.cpu.executor import CpuExecutor
from octavo.graph.builder import GraphBuilder
from octavo.weights.tensor import Format, Tensor
from octavo.backends.protocol import Batch
from tests.backends.batches import Change, Runner, changed, rows


def runner(width, vocab):
    g = GraphBuilder()
    x = g.embedding("table", vocab, width)
    x = x + g.linear(x, "body", width)
    graph = g.finish(g.linear(g.select_rows(x), "head", vocab))
    rng = np.random.default_rng(0)
    tensors = {
        name: Tensor(name, shape, Format.F16, rng.normal(size=shape).astype(np.float16))
        for name, shape in graph.parameters().items()
    }
    return Runner(CpuExecutor(graph, tensors, vocab_size=vocab, num_pages=2048, max_positions=16384, threads=3))


def sample(executor, tokens, change=None):
    "A step of sequences of one token each; the tokens that come next, drawn of all but for what changes every row."
    count = len(tokens)
    each = np.arange(count, dtype=np.int32)
    wanted = rows(count, seeds=each)
    if change is not None:
        wanted = changed(wanted, dict.fromkeys(range(count), change), executor.vocab_size)
    return executor.submit(Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.zeros(count, np.int32),
        slots=16 * each.astype(np.int64),
        query_starts=np.arange(count + 1, dtype=np.int32),
        context_lengths=np.ones(count, np.int32),
        page_table=each[:, np.newaxis],
        table_rows=each,
        copies=np.zeros((0, 2), np.int32),
        logits=wanted,
    )).result().tokens


def leave(free_bytes):
    "Leave that much of the address space."
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + free_bytes, resource.RLIM_INFINITY))


def leave_all():
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def fails(step):
    try:
        step()
    except MemoryError:
        return True
    return False
"""


def run(body: str) -> None:
    """A program of its own: what it asserts must hold, and it must live to say so."""
    # Memory that was freed goes back to the system, and no thread has address space in reserve: what is left is what
    # the limit leaves.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"}
    program = [sys.executable, "-c", SETUP + body + "print('lived')\n"]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "lived"), done.stderr[-2000:]


def test_a_prompt_too_large_for_memory_fails_alone() -> None:
    # Its buffers, 64 MiB each, do not fit.
    run("""
prompt = [i % 100 for i in range(8192)]
some, undisturbed = runner(2048, 100), runner(2048, 100)
one = some.run([7])
leave(16 * 2**20)
assert fails(lambda: some.run(prompt))
assert fails(lambda: some.run(prompt))  # not a write to memory that was never given
assert np.array_equal(some.run([7]), one)
leave_all()
assert np.array_equal(some.run(prompt[:4096])[:, :20], undisturbed.run(prompt[:4096])[:, :20])
""")


def test_what_a_thread_throws_reaches_the_caller() -> None:
    # A thread that changes logits makes a copy of them first, 2 MB here, whichever threads take the rows.
    run("""
executor = runner(32, 500_000).executor
tokens, change = [1, 2, 3], Change(biases={7: 1.0})
plain = sample(executor, tokens)
leave(2**20)
for _ in range(20):
    assert fails(lambda: sample(executor, tokens, change))
leave_all()
assert np.array_equal(sample(executor, tokens), plain)
found = sample(executor, tokens, change)
assert found.tolist() == [sample(executor, tokens[:row + 1], change)[row] for row in range(3)]
""")
