"""Qwen 2 and 2.5: Llama with biases on queries, keys and values; later layers may have a window."""

from octavo.graph.builder import GraphBuilder, Value
from octavo.models.common import DecoderConfig, read_decoder, read_sliding_layers
from octavo.models.settings import Settings


def read_qwen(settings: Settings) -> DecoderConfig:
    """Also Qwen 3's config, which is alike."""
    window = settings.integer("sliding_window", 4096) if settings.flag("use_sliding_window", False) else None
    first = settings.integer("max_window_layers", 28) if window else 0
    sliding = read_sliding_layers(settings, lambda layer: layer >= first)
    return read_decoder(settings, windows=tuple(window if slides else None for slides in sliding))


def qwen2(g: GraphBuilder, c: DecoderConfig) -> Value:
    """RMS norms, rotary attention with grouped heads and biases, gated MLP."""
    x = g.embedding("model.embed_tokens", c.vocab_size, c.hidden_size)
    for layer, (rope, window) in enumerate(zip(c.ropes, c.windows, strict=True)):
        with g.scope(f"model.layers.{layer}"):
            h = g.rms_norm(x, "input_layernorm", c.norm_eps)
            q = g.linear(h, "self_attn.q_proj", c.query_width, bias=True)
            k = g.linear(h, "self_attn.k_proj", c.kv_width, bias=True)
            v = g.linear(h, "self_attn.v_proj", c.kv_width, bias=True)
            h = g.attention(g.rope(q, rope), g.rope(k, rope), v, layer=layer, head_dim=c.head_dim, window=window)
            x = x + g.linear(h, "self_attn.o_proj", c.hidden_size)
            h = g.rms_norm(x, "post_attention_layernorm", c.norm_eps)
            gate = g.activation(g.linear(h, "mlp.gate_proj", c.intermediate_size), c.activation)
            x = x + g.linear(gate * g.linear(h, "mlp.up_proj", c.intermediate_size), "mlp.down_proj", c.hidden_size)
    return g.linear(g.rms_norm(g.select_rows(x), "model.norm", c.norm_eps), c.head, c.vocab_size)
