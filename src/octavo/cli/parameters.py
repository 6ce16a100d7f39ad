"""What commands other than `serve` are told."""

from dataclasses import dataclass
from typing import ClassVar

from octavo.engine.config import EngineConfig
from octavo.settings import ANY_TEXT, TOKENS, setting, settings_of

BENCH_ENGINE = tuple(
    each
    for name, each in settings_of(EngineConfig).items()
    if name not in ("max_num_queued_reqs", "max_num_queued_tokens")
)
INFO_ENGINE = tuple(settings_of(EngineConfig)[name] for name in ("backend", "isa", "threads"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatParameters:
    """What `octavo chat` is told."""

    url: str | None = setting(
        None, help="Of a running server.", metavar="URL", without="a server is started for the chat"
    )
    api_key: str | None = setting(None, help="Of that server.", secret=True, metavar="KEY", without="OCTAVO_API_KEY")
    prompt: str | None = setting(
        None, help="Answer this and exit.", kind=ANY_TEXT, aliases=("-p",), without="a conversation"
    )
    system: str | None = setting(None, help="System message.", kind=ANY_TEXT, without="none")
    temperature: float | None = setting(None, help="0 is greedy.", least=0, most=2, without="the model's")
    top_p: float | None = setting(None, help="Nucleus sampling.", above=0, most=1, without="the model's")
    max_tokens: int | None = setting(
        None, help="Tokens of an answer.", kind=TOKENS, least=1, most=2**31, without="what the context allows"
    )
    seed: int | None = setting(
        None, help="Makes sampled answers repeatable.", least=-(2**63), most=2**63 - 1, without="another one every time"
    )

    @property
    def sampling(self) -> dict[str, float]:
        """The sampling parameters that were given."""
        names = ("temperature", "top_p", "max_tokens", "seed")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineParameters:
    """What `octavo bench offline` measures."""

    num_prompts: int = setting(32, help="Prompts, all queued at once.", least=1, most=2**20)
    input_len: int = setting(128, help="Tokens per prompt.", kind=TOKENS, least=1, most=2**31)
    output_len: int = setting(64, help="Tokens generated per prompt.", kind=TOKENS, least=1, most=2**31)
    seed: int = setting(0, help="Of the random prompts.", least=0, most=2**63)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyParameters:
    """What `octavo bench latency` measures."""

    num_prompts: ClassVar = 1
    input_len: int = setting(512, help="Tokens of the prompt.", kind=TOKENS, least=1, most=2**31)
    output_len: int = setting(64, help="Tokens generated.", kind=TOKENS, least=1, most=2**31)
    seed: int = setting(0, help="Of the random prompt.", least=0, most=2**63)
