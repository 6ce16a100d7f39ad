"""GPT-2: learned positions, layer norms, biases everywhere."""

from dataclasses import dataclass

from octavo.errors import CheckpointError
from octavo.graph.builder import GraphBuilder, Value
from octavo.graph.ops import ActivationFunction
from octavo.models.common import read_activation, read_num_layers
from octavo.models.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class GPT2Config:
    """GPT-2's numbers; `attention_scales` has for each layer what its scores are multiplied by."""

    vocab_size: int
    hidden_size: int
    inner_size: int
    num_heads: int
    norm_eps: float
    activation: ActivationFunction
    tie_word_embeddings: bool
    max_position_embeddings: int
    attention_scales: tuple[float, ...]


def read_gpt2(settings: Settings) -> GPT2Config:
    settings.refuse("add_cross_attention")
    hidden_size, num_heads = settings.integer("n_embd"), settings.integer("n_head")
    if hidden_size % num_heads:
        raise CheckpointError(f"{settings.source}: {num_heads} heads cannot share {hidden_size} features evenly")
    scale = (hidden_size // num_heads) ** -0.5 if settings.flag("scale_attn_weights", True) else 1.0
    by_layer = settings.flag("scale_attn_by_inverse_layer_idx", False)
    return GPT2Config(
        vocab_size=settings.integer("vocab_size"),
        hidden_size=hidden_size,
        inner_size=settings.integer("n_inner", 4 * hidden_size),
        num_heads=num_heads,
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        activation=read_activation(settings, "activation_function", "gelu_new"),
        tie_word_embeddings=settings.flag("tie_word_embeddings", True),
        max_position_embeddings=settings.integer("n_positions"),
        attention_scales=tuple(
            scale / (layer + 1) if by_layer else scale for layer in range(read_num_layers(settings, "n_layer"))
        ),
    )


def gpt2(g: GraphBuilder, c: GPT2Config) -> Value:
    """Layer norms before attention and MLP, attention with a projection that is merged in the checkpoint."""
    with g.scope("transformer"):
        x = g.embedding("wte", c.vocab_size, c.hidden_size)
        x = x + g.position_embedding("wpe", c.max_position_embeddings, c.hidden_size)
        for layer, scale in enumerate(c.attention_scales):
            with g.scope(f"h.{layer}"):
                h = g.linear(g.layer_norm(x, "ln_1", c.norm_eps), "attn.c_attn", 3 * c.hidden_size, bias=True)
                q, k, v = g.split(h, [c.hidden_size] * 3)
                h = g.attention(q, k, v, layer=layer, head_dim=c.hidden_size // c.num_heads, scale=scale)
                x = x + g.linear(h, "attn.c_proj", c.hidden_size, bias=True)
                h = g.linear(g.layer_norm(x, "ln_2", c.norm_eps), "mlp.c_fc", c.inner_size, bias=True)
                x = x + g.linear(g.activation(h, c.activation), "mlp.c_proj", c.hidden_size, bias=True)
        x = g.layer_norm(g.select_rows(x), "ln_f", c.norm_eps)
    return g.linear(x, "transformer.wte" if c.tie_word_embeddings else "lm_head", c.vocab_size)
