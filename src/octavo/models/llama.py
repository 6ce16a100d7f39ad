"""Llama 2 and 3, and what is built like them: Mistral (with its sliding window), SmolLM2."""

from octavo.graph.builder import GraphBuilder, Value
from octavo.models.common import DecoderConfig, read_decoder
from octavo.models.settings import Settings


def read_llama(settings: Settings) -> DecoderConfig:
    return read_decoder(settings, windows=(None,) * settings.integer("num_hidden_layers"))


def read_mistral(settings: Settings) -> DecoderConfig:
    window = settings.integer("sliding_window") if settings.get("sliding_window") is not None else None
    return read_decoder(settings, windows=(window,) * settings.integer("num_hidden_layers"))


def llama(g: GraphBuilder, c: DecoderConfig) -> Value:
    """RMS norms, rotary attention with grouped heads, gated MLP."""
    x = g.embedding("model.embed_tokens", c.vocab_size, c.hidden_size)
    for layer, (rope, window) in enumerate(zip(c.ropes, c.windows, strict=True)):
        with g.scope(f"model.layers.{layer}"):
            h = g.rms_norm(x, "input_layernorm", c.norm_eps)
            q = g.linear(h, "self_attn.q_proj", c.query_width, bias=c.attention_bias)
            k = g.linear(h, "self_attn.k_proj", c.kv_width, bias=c.attention_bias)
            v = g.linear(h, "self_attn.v_proj", c.kv_width, bias=c.attention_bias)
            h = g.attention(g.rope(q, rope), g.rope(k, rope), v, layer=layer, head_dim=c.head_dim, window=window)
            x = x + g.linear(h, "self_attn.o_proj", c.hidden_size, bias=c.attention_bias)
            h = g.rms_norm(x, "post_attention_layernorm", c.norm_eps)
            gate = g.activation(g.linear(h, "mlp.gate_proj", c.intermediate_size, bias=c.mlp_bias), c.activation)
            h = gate * g.linear(h, "mlp.up_proj", c.intermediate_size, bias=c.mlp_bias)
            x = x + g.linear(h, "mlp.down_proj", c.hidden_size, bias=c.mlp_bias)
    return g.linear(g.rms_norm(g.select_rows(x), "model.norm", c.norm_eps), c.head, c.vocab_size)
