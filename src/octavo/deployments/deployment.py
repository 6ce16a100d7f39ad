"""A name that requests may use, and what stands behind it."""

from dataclasses import dataclass, field

from octavo.deployments.defaults import GenerationDefaults
from octavo.engine.client import EngineClient, EngineState
from octavo.grammar.compiler import GrammarCompiler
from octavo.grammar.vocabulary import Vocabulary
from octavo.text import Tokenizer
from octavo.text.answer import AnswerFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A language model, and the names it answers to.

    Attributes:
        name: the name in replies and metrics. aliases: other names that requests may use.
        root: where it came from (a repository id or path); clients load its tokenizer by this name.
        tokenizer: text to ids and back. engine: computes.
        max_model_len: tokens of prompt and output together, until the engine has said what it can hold.
        defaults: sampling parameters for what a request leaves open.
        allow_special_tokens_in_messages: whether a message that has the text of a special token has the token.
        trust_request_chat_template: whether requests may bring chat templates of their own.
        answers: how the model writes calls of tools, and what it thinks.
        created: seconds since the epoch.
        grammars: compiles what answers must look like.
    """

    name: str
    tokenizer: Tokenizer
    engine: EngineClient
    max_model_len: int
    created: int
    version: str = "1"
    aliases: tuple[str, ...] = ()
    root: str = ""
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    allow_special_tokens_in_messages: bool = False
    trust_request_chat_template: bool = False
    answers: AnswerFormat = field(default_factory=lambda: AnswerFormat.of(None, ""))
    grammars: GrammarCompiler = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "grammars", GrammarCompiler(self._vocabulary))
        self.engine.vocabulary = lambda: self.grammars.vocabulary

    def close(self) -> None:
        """Let go of what it holds; its last request has ended."""
        self.grammars.close()

    def _vocabulary(self) -> Vocabulary:
        info = self.engine.info
        return self.tokenizer.vocabulary(self.tokenizer.vocab_size if info is None else info.vocab_size)

    @property
    def state(self) -> EngineState:
        """What its engine can do now."""
        return self.engine.state

    @property
    def context_length(self) -> int:
        """Tokens of prompt and output together that a request may have."""
        info = self.engine.info
        return self.max_model_len if info is None else info.max_model_len
