"""The numbers that describe a decoder with rotary positions, as the families share them."""

from collections.abc import Callable
from dataclasses import dataclass

from octavo.errors import CheckpointError, UnsupportedError
from octavo.graph.ops import ActivationFunction, Rope
from octavo.models.rope import make_rope, rope_parameters, rope_type
from octavo.models.settings import Settings

ACTIVATIONS: dict[str, ActivationFunction] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Activation functions by the names that configs use."""

MAX_LAYERS = 4096
MAX_HEAD_DIM = 4096
"""No model comes near; what is above is a mistake, or meant to exhaust whoever reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """A decoder's sizes and switches, under their usual names; what is different here:

    Attributes:
        qkv_bias, output_bias: whether queries, keys and values, and what attention comes to, are projected with biases.
        head_norms: whether every head of queries and keys has a norm.
        attention_scale: what scores are multiplied by.
        windows: for each layer how many tokens a token sees, itself included; None is all.
        ropes: for each layer its rotary embedding.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    activation: ActivationFunction
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    max_position_embeddings: int
    attention_scale: float
    windows: tuple[int | None, ...]
    ropes: tuple[Rope, ...]
    head_norms: bool = False

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def head(self) -> str:
        """The module that turns hidden states into logits."""
        return "model.embed_tokens" if self.tie_word_embeddings else "lm_head"


def read_decoder(
    settings: Settings,
    *,
    windows: tuple[int | None, ...],
    ropes: tuple[Rope, ...] | None = None,
    attention_scale: float | None = None,
) -> DecoderConfig:
    """Read what most configs call the same.

    Args:
        settings: the config.
        windows: for each layer how many tokens it sees.
        ropes: for each layer its rotary embedding; None is the one that the config describes, for all of them.
        attention_scale: None is 1 / sqrt(head_dim).

    Raises:
        CheckpointError: a value is missing or cannot be.
        UnsupportedError: an activation function or rotary embedding that is not implemented.
    """
    num_heads, num_kv_heads, head_dim = read_heads(settings)
    max_positions = settings.integer("max_position_embeddings")
    activation_key = "hidden_act" if settings.get("hidden_activation") is None else "hidden_activation"
    parameters = rope_parameters(settings)
    if ropes is None:
        theta = settings.number("rope_theta", 10_000.0)
        ropes = (make_rope(parameters, head_dim=head_dim, theta=theta, max_positions=max_positions),) * len(windows)
    if rope_type(parameters) == "yarn":
        # Whoever enables YaRN as its authors describe leaves max_position_embeddings at the length before it.
        original = parameters.integer("original_max_position_embeddings", max_positions)
        max_positions = max(max_positions, int(original * parameters.number("factor")))
    return DecoderConfig(
        vocab_size=settings.integer("vocab_size"),
        hidden_size=settings.integer("hidden_size"),
        intermediate_size=settings.integer("intermediate_size"),
        num_layers=len(windows),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        activation=read_activation(settings, activation_key, "silu"),
        qkv_bias=settings.flag("attention_bias", False),
        output_bias=settings.flag("attention_bias", False),
        mlp_bias=settings.flag("mlp_bias", False),
        tie_word_embeddings=settings.flag("tie_word_embeddings", False),
        max_position_embeddings=max_positions,
        attention_scale=head_dim**-0.5 if attention_scale is None else attention_scale,
        windows=windows,
        ropes=ropes,
    )


def read_heads(settings: Settings) -> tuple[int, int, int]:
    """Heads, KV heads, and the size of a head, which must be even to be turned in pairs."""
    num_heads = settings.integer("num_attention_heads")
    num_kv_heads = settings.integer("num_key_value_heads", num_heads)
    hidden_size = settings.integer("hidden_size")
    if settings.get("head_dim") is None and hidden_size < num_heads:
        raise CheckpointError(f"{settings.source}: {num_heads} attention heads cannot share {hidden_size} features")
    head_dim = settings.integer("head_dim", hidden_size // num_heads, most=MAX_HEAD_DIM)
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"{settings.source}: {num_heads} attention heads cannot share {num_kv_heads} key-value heads evenly"
        )
    if head_dim % 2:
        raise CheckpointError(f"{settings.source}: heads of {head_dim} features; rotary embeddings need an even number")
    return num_heads, num_kv_heads, head_dim


def read_activation(settings: Settings, key: str, default: str) -> ActivationFunction:
    name = settings.get(key, default)
    if not isinstance(name, str):
        raise settings.wrong(key, "a name")
    if name not in ACTIVATIONS:
        raise settings.unsupported(key, f"supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def read_num_layers(settings: Settings, key: str = "num_hidden_layers") -> int:
    """Layers, of which there must be no more than any model can have: a graph is built of them all."""
    return settings.integer(key, most=MAX_LAYERS)


def read_sliding_layers(settings: Settings, is_sliding: Callable[[int], bool]) -> tuple[bool, ...]:
    """For each layer whether it sees only a window: as `layer_types` says, else as `is_sliding` says of its number."""
    num_layers = read_num_layers(settings)
    types = settings.get("layer_types")
    if types is None:
        return tuple(is_sliding(layer) for layer in range(num_layers))
    if not isinstance(types, list) or len(types) != num_layers:
        raise settings.wrong("layer_types", f"a list of {num_layers} names")
    for name in types:
        if name not in ("full_attention", "sliding_attention"):
            raise UnsupportedError(
                f"{settings.source}: layer type {name!r:.80} is not supported; "
                "supported: full_attention, sliding_attention"
            )
    return tuple(name == "sliding_attention" for name in types)
