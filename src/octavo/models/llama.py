"""Llama 2 and 3, and what is built like them: SmolLM2, Mistral, Qwen 2, 2.5 and 3.

Mistral has a sliding window; Qwen 2 biases on queries, keys and values; Qwen 3 norms on the heads of queries and keys.
"""

from dataclasses import replace

from octavo.graph.builder import GraphBuilder, Value
from octavo.models.common import DecoderConfig, read_decoder, read_num_layers, read_sliding_layers
from octavo.models.settings import Settings


def read_llama(settings: Settings) -> DecoderConfig:
    return read_decoder(settings, windows=(None,) * read_num_layers(settings))


def read_mistral(settings: Settings) -> DecoderConfig:
    window = settings.nullable_integer("sliding_window", 4096)
    return read_decoder(settings, windows=(window,) * read_num_layers(settings))


def read_qwen2(settings: Settings) -> DecoderConfig:
    return replace(_read_qwen(settings), qkv_bias=True, output_bias=False)


def read_qwen3(settings: Settings) -> DecoderConfig:
    return replace(_read_qwen(settings), head_norms=True)


def _read_qwen(settings: Settings) -> DecoderConfig:
    """What Qwen 2 and 3 have in common: later layers may have a window."""
    window = settings.nullable_integer("sliding_window", 4096) if settings.flag("use_sliding_window", False) else None
    first = settings.integer("max_window_layers", 28, least=0) if window else 0
    sliding = read_sliding_layers(settings, lambda layer: layer >= first)
    config = read_decoder(settings, windows=tuple(window if slides else None for slides in sliding))
    return replace(config, mlp_bias=False)


def llama(g: GraphBuilder, c: DecoderConfig) -> Value:
    """RMS norms, rotary attention with grouped heads, gated MLP."""
    x = g.embedding("model.embed_tokens", c.vocab_size, c.hidden_size)
    for layer, (rope, window) in enumerate(zip(c.ropes, c.windows, strict=True)):
        with g.scope(f"model.layers.{layer}"):
            h = g.rms_norm(x, "input_layernorm", c.norm_eps)
            q = g.linear(h, "self_attn.q_proj", c.query_width, bias=c.qkv_bias)
            k = g.linear(h, "self_attn.k_proj", c.kv_width, bias=c.qkv_bias)
            v = g.linear(h, "self_attn.v_proj", c.kv_width, bias=c.qkv_bias)
            if c.head_norms:
                q = g.rms_norm(q, "self_attn.q_norm", c.norm_eps, group=c.head_dim)
                k = g.rms_norm(k, "self_attn.k_norm", c.norm_eps, group=c.head_dim)
            h = g.attention(g.rope(q, rope), g.rope(k, rope), v, layer=layer, head_dim=c.head_dim, window=window)
            x = x + g.linear(h, "self_attn.o_proj", c.hidden_size, bias=c.output_bias)
            h = g.rms_norm(x, "post_attention_layernorm", c.norm_eps)
            gate = g.activation(g.linear(h, "mlp.gate_proj", c.intermediate_size, bias=c.mlp_bias), c.activation)
            h = gate * g.linear(h, "mlp.up_proj", c.intermediate_size, bias=c.mlp_bias)
            x = x + g.linear(h, "mlp.down_proj", c.hidden_size, bias=c.mlp_bias)
    return g.linear(g.rms_norm(g.select_rows(x), "model.norm", c.norm_eps), c.head, c.vocab_size)
