"""Builder, passes and cost."""

from math import prod

import pytest

from octavo.graph.builder import GraphBuilder
from octavo.graph.cost import kv_bytes_per_token, step_cost
from octavo.graph.ops import Attention, Graph, Linear, SelectRows, Slice
from octavo.graph.passes import merge_sibling_linears, select_rows_early
from octavo.models import build

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def smollm2() -> Graph:
    return build(CONFIG).graph


def test_parameters_are_those_of_the_checkpoint(smollm2: Graph) -> None:
    parameters = smollm2.parameters()
    assert parameters["model.embed_tokens.weight"] == (49152, 576)
    assert parameters["model.layers.29.self_attn.k_proj.weight"] == (192, 576)
    assert "lm_head.weight" not in parameters
    assert sum(map(prod, parameters.values())) == 134_515_008  # the published count


def test_merging_leaves_the_parameters_and_joins_siblings(smollm2: Graph) -> None:
    merged = merge_sibling_linears(smollm2)
    assert merged.parameters() == smollm2.parameters()
    linears = [node for node in merged.nodes if isinstance(node.op, Linear)]
    assert len(linears) == 30 * 4 + 1
    assert sorted({node.width for node in linears}) == [576, 960, 3072, 49152]
    for node in merged.nodes:
        if isinstance(node.op, Slice):
            assert node.op.stop - node.op.start == node.width
        assert all(source < merged.nodes.index(node) for source in node.inputs)


def test_linears_of_different_inputs_are_not_merged() -> None:
    g = GraphBuilder()
    x = g.embedding("embed", 10, 8)
    y = g.linear(x, "a", 8) + g.linear(g.activation(x, "silu"), "b", 8)
    graph = g.finish(g.linear(g.select_rows(y), "head", 10))
    assert merge_sibling_linears(graph) == graph


def test_rows_are_selected_after_the_last_attention(smollm2: Graph) -> None:
    early = select_rows_early(smollm2)
    assert early.parameters() == smollm2.parameters()
    nodes = early.nodes
    last = max(index for index, node in enumerate(nodes) if isinstance(node.op, Attention))
    selections = [index for index, node in enumerate(nodes) if isinstance(node.op, SelectRows)]
    # What attention came to, and what it is added to.
    assert len(selections) == 2
    assert min(selections) > last
    selected: set[int] = set()
    for index, node in enumerate(nodes):
        assert all(source < index for source in node.inputs)
        if index in selections or selected.intersection(node.inputs):
            assert index in selections or selected.issuperset(node.inputs)
            selected.add(index)
    assert [node.op for node in nodes[last + 1 :] if isinstance(node.op, Linear)] == [
        node.op for node in smollm2.nodes if isinstance(node.op, Linear)
    ][-5:]
    assert set(range(last + 1, len(nodes))) == selected


def test_rows_that_attention_reads_are_not_selected_before_it() -> None:
    g = GraphBuilder()
    x = g.embedding("embed", 10, 8)
    h = g.linear(x, "a", 8)
    attended = g.attention(h, h, h, layer=0, head_dim=8)
    graph = g.finish(g.linear(g.select_rows(attended + h), "head", 10))
    early = select_rows_early(graph)
    assert [type(node.op).__name__ for node in early.nodes] == [
        "Embedding",
        "Linear",
        "Attention",
        "SelectRows",
        "SelectRows",
        "Add",
        "Linear",
    ]


def test_cost_is_two_operations_a_weight_and_the_kv_cache(smollm2: Graph) -> None:
    body = sum(prod(shape) for name, shape in smollm2.parameters().items() if "proj" in name)
    head = 49152 * 576
    costs = step_cost(smollm2, tokens=[1, 1, 5], contexts=[100, 7, 5], logit_rows=3)
    linear = sum(cost.flops for cost in costs if "attention" not in cost.name)
    assert linear == 2 * (7 * body + 3 * head)
    pairs = 100 + 7 + (1 + 2 + 3 + 4 + 5)
    attention = [cost for cost in costs if cost.name.endswith("attention")]
    assert sum(cost.flops for cost in attention) == 30 * 4 * 9 * 64 * pairs
    assert sum(cost.bytes for cost in attention) == (100 + 7 + 5 + 7) * kv_bytes_per_token(smollm2, 4)
    assert kv_bytes_per_token(smollm2, 4) == 46_080


def test_a_window_bounds_what_attention_costs() -> None:
    config = CONFIG | {"architectures": ["MistralForCausalLM"], "sliding_window": 50, "tie_word_embeddings": False}
    graph = build(config).graph
    assert all(node.op.window == 50 for node in graph.nodes if isinstance(node.op, Attention))
    far = sum(cost.flops for cost in step_cost(graph, tokens=[1], contexts=[5000], logit_rows=1))
    near = sum(cost.flops for cost in step_cost(graph, tokens=[1], contexts=[50], logit_rows=1))
    assert far == near


def test_weights_cost_what_they_take_in_storage(smollm2: Graph) -> None:
    quarter = {name: prod(shape) // 2 for name, shape in smollm2.parameters().items()}
    whole = sum(cost.bytes for cost in step_cost(smollm2, tokens=[1], contexts=[1], logit_rows=1))
    small = sum(cost.bytes for cost in step_cost(smollm2, tokens=[1], contexts=[1], logit_rows=1, weight_bytes=quarter))
    kv = 2 * kv_bytes_per_token(smollm2, 4)
    assert (whole - kv) / (small - kv) == pytest.approx(8, rel=0.01)


def test_nothing_is_computed_for_logits_nobody_wants(smollm2: Graph) -> None:
    costs = step_cost(smollm2, tokens=[16], contexts=[16], logit_rows=0)
    assert costs[-1].flops == 0
    assert costs[-1].bytes == 0


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda g, x: g.add(x, g.linear(x, "a", 9)), "add.*8.*9"),
        (lambda g, x: g.rms_norm(x, "norm", 1e-5, group=3), "norm.*3.*8"),
        (lambda g, x: g.split(x, [3, 4]), "split"),
        (lambda g, x: g.attention(x, g.linear(x, "k", 6), g.linear(x, "v", 6), layer=0, head_dim=4), "heads of 4"),
        (lambda g, x: g.attention(x, x, x, layer=1, head_dim=4), "layer 1"),
        (lambda g, x: g.finish(g.linear(x, "head", 5)), "never selected"),
        (lambda g, x: (g.linear(x, "a", 8), g.linear(x, "a", 4)), "shape"),
        (lambda g, x: g.add(x, g.select_rows(x)), "add"),
    ],
)
def test_mistakes_in_a_model_are_named(mistake, words: str) -> None:  # type: ignore[no-untyped-def]
    g = GraphBuilder()
    x = g.embedding("embed", 10, 8)
    with pytest.raises(ValueError, match=words):
        mistake(g, x)
