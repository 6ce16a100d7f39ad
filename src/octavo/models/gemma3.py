"""Gemma 3, the language model: local and global layers with a rotary embedding each, norms before and after."""

from octavo.graph.builder import GraphBuilder, Value
from octavo.models.common import DecoderConfig, read_decoder, read_heads, read_sliding_layers
from octavo.models.rope import make_rope
from octavo.models.settings import Settings

DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "tie_word_embeddings": True,
}
"""What a config leaves out: the `text_config` of a published checkpoint names only what differs from these."""


def read_gemma3(settings: Settings) -> DecoderConfig:
    settings = settings.over(DEFAULTS)
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention"):
        settings.refuse(key)
    pattern, window = settings.integer("sliding_window_pattern"), settings.integer("sliding_window")
    sliding = read_sliding_layers(settings, lambda layer: (layer + 1) % pattern != 0)

    by_type = settings.section("rope_parameters")  # since transformers 5
    head_dim, max_positions = read_heads(settings)[2], settings.integer("max_position_embeddings")
    every = make_rope(
        by_type.section("full_attention") or settings.section("rope_scaling"),
        head_dim=head_dim,
        theta=settings.number("rope_theta", 1_000_000.0),
        max_positions=max_positions,
    )
    local = make_rope(
        by_type.section("sliding_attention"),
        head_dim=head_dim,
        theta=settings.number("rope_local_base_freq", 10_000.0),
        max_positions=max_positions,
    )
    return read_decoder(
        settings,
        windows=tuple(window if slides else None for slides in sliding),
        ropes=tuple(local if slides else every for slides in sliding),
        attention_scale=settings.number("query_pre_attn_scalar") ** -0.5,
    )


def gemma3(g: GraphBuilder, c: DecoderConfig) -> Value:
    """Scaled embeddings; RMS norms around attention and MLP and on the heads of queries and keys."""

    def norm(x: Value, name: str, group: int | None = None) -> Value:
        return g.rms_norm(x, name, c.norm_eps, group=group, offset=1.0)

    x = g.embedding("model.embed_tokens", c.vocab_size, c.hidden_size) * c.hidden_size**0.5
    for layer, (rope, window) in enumerate(zip(c.ropes, c.windows, strict=True)):
        with g.scope(f"model.layers.{layer}"):
            h = norm(x, "input_layernorm")
            q = g.linear(h, "self_attn.q_proj", c.query_width, bias=c.qkv_bias)
            k = g.linear(h, "self_attn.k_proj", c.kv_width, bias=c.qkv_bias)
            v = g.linear(h, "self_attn.v_proj", c.kv_width, bias=c.qkv_bias)
            q = g.rope(norm(q, "self_attn.q_norm", c.head_dim), rope)
            k = g.rope(norm(k, "self_attn.k_norm", c.head_dim), rope)
            h = g.attention(q, k, v, layer=layer, head_dim=c.head_dim, scale=c.attention_scale, window=window)
            h = g.linear(h, "self_attn.o_proj", c.hidden_size, bias=c.output_bias)
            x = x + norm(h, "post_attention_layernorm")
            h = norm(x, "pre_feedforward_layernorm")
            gate = g.activation(g.linear(h, "mlp.gate_proj", c.intermediate_size), c.activation)
            h = g.linear(gate * g.linear(h, "mlp.up_proj", c.intermediate_size), "mlp.down_proj", c.hidden_size)
            x = x + norm(h, "post_feedforward_layernorm")
    return g.linear(norm(g.select_rows(x), "model.norm"), c.head, c.vocab_size)
