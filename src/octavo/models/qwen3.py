"""Qwen 3: Llama with norms on the heads of queries and keys. Its config reads as Qwen 2's does."""

from octavo.graph.builder import GraphBuilder, Value
from octavo.models.common import DecoderConfig


def qwen3(g: GraphBuilder, c: DecoderConfig) -> Value:
    """RMS norms, also per head, rotary attention with grouped heads, gated MLP."""
    x = g.embedding("model.embed_tokens", c.vocab_size, c.hidden_size)
    for layer, (rope, window) in enumerate(zip(c.ropes, c.windows, strict=True)):
        with g.scope(f"model.layers.{layer}"):
            h = g.rms_norm(x, "input_layernorm", c.norm_eps)
            q = g.linear(h, "self_attn.q_proj", c.query_width, bias=c.attention_bias)
            k = g.linear(h, "self_attn.k_proj", c.kv_width, bias=c.attention_bias)
            v = g.linear(h, "self_attn.v_proj", c.kv_width, bias=c.attention_bias)
            q = g.rope(g.rms_norm(q, "self_attn.q_norm", c.norm_eps, group=c.head_dim), rope)
            k = g.rope(g.rms_norm(k, "self_attn.k_norm", c.norm_eps, group=c.head_dim), rope)
            h = g.attention(q, k, v, layer=layer, head_dim=c.head_dim, window=window)
            x = x + g.linear(h, "self_attn.o_proj", c.hidden_size, bias=c.attention_bias)
            h = g.rms_norm(x, "post_attention_layernorm", c.norm_eps)
            gate = g.activation(g.linear(h, "mlp.gate_proj", c.intermediate_size), c.activation)
            x = x + g.linear(gate * g.linear(h, "mlp.up_proj", c.intermediate_size), "mlp.down_proj", c.hidden_size)
    return g.linear(g.rms_norm(g.select_rows(x), "model.norm", c.norm_eps), c.head, c.vocab_size)
