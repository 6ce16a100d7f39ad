"""Chat templates against transformers' apply_chat_template, and what only a server needs."""

from typing import Any

import pytest
import tokenizers
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from octavo.text import ChatTemplate, TemplateError

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = """
{%- if tools %}
    {{- '<|im_start|>system\\nTools:' }}
    {%- for tool in tools %}
        {{- '\\n' + (tool | tojson) }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<call>' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) + '</call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA3 = """
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = 'Be brief.' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

GEMMA = """{{ bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set prefix = messages[0].content + '\\n\\n' %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set prefix = '' %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- for message in loop_messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set role = 'model' if message.role == 'assistant' else message.role %}
    {{- '<start_of_turn>' + role + '\\n' + (prefix if loop.first else '') }}
    {%- if message.content is string %}
        {{- message.content | trim }}
    {%- else %}
        {%- for part in message.content %}{{ part.text | trim }}{% endfor %}
    {%- endif %}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}
{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}
{% elif message['role'] == 'system' %}
{% if not loop.first %}{% continue %}{% endif %}
{{ '<<SYS>>' + message['content'] + '<</SYS>>' }}
{% else %}
{{ raise_exception('Unknown role ' + message['role']) }}
{% endif %}
{% endfor %}"""

PARTS_ONLY = (
    "{% for m in messages %}{{ m.role }}:{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %};{% endfor %}"
)

CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "What is <b>France</b>'s capital?"}],
    "system": [{"role": "system", "content": "Être bref."}, {"role": "user", "content": " Why? "}],
    "turns": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello. "},
        {"role": "user", "content": "More"},
    ],
}
TOOLS = [{"type": "function", "function": {"name": "météo", "parameters": {"type": "object", "a": [1, None]}}}]


def ours(source: str | dict[str, str]) -> ChatTemplate:
    return ChatTemplate({"default": source} if isinstance(source, str) else source, SPECIAL)


def theirs(source: str, messages: list[dict[str, Any]], **options: Any) -> str:
    vocab = tokenizers.Tokenizer(models.BPE({"<s>": 0, "</s>": 1}, []))
    oracle = PreTrainedTokenizerFast(tokenizer_object=vocab, **SPECIAL)
    text = oracle.apply_chat_template(messages, chat_template=source, tokenize=False, **options)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("source", [CHATML, LLAMA3, GEMMA, MISTRAL], ids=["chatml", "llama3", "gemma", "mistral"])
@pytest.mark.parametrize("chat", CHATS)
def test_equals_transformers(source: str, chat: str) -> None:
    messages = CHATS[chat]
    for options in (
        {"add_generation_prompt": True},
        {"add_generation_prompt": False},
        {"add_generation_prompt": True, "tools": TOOLS},
        {"add_generation_prompt": True, "enable_thinking": False},
    ):
        assert ours(source).render(messages, **options) == theirs(source, messages, **options)


@pytest.mark.parametrize("source", [CHATML, LLAMA3, GEMMA, MISTRAL], ids=["chatml", "llama3", "gemma", "mistral"])
@pytest.mark.parametrize("start", ["Once upon", "Once upon a  "])
def test_continuing_the_final_message_equals_transformers(source: str, start: str) -> None:
    messages = [{"role": "user", "content": "A tale"}, {"role": "assistant", "content": start}]
    options = {"add_generation_prompt": False, "continue_final_message": True}
    assert ours(source).render(messages, **options) == theirs(source, messages, **options)
    assert messages[-1]["content"] == start


def test_a_message_that_cannot_be_continued() -> None:
    user_only = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(TemplateError, match="leaves out the final message"):
        ours(user_only).render(messages, add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(TemplateError, match="exclude each other"):
        ours(CHATML).render(messages, continue_final_message=True)


def test_tool_calls_equal_transformers_given_objects() -> None:
    arguments = '{"city": "Paris", "days": 3}'

    def messages(arguments: Any) -> list[dict[str, Any]]:
        call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
        return [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        ]

    expected = theirs(CHATML, messages({"city": "Paris", "days": 3}), tools=TOOLS)
    sent = messages(arguments)
    sent[1]["content"] = None
    assert ours(CHATML).render(sent, tools=TOOLS, add_generation_prompt=False) == expected
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == arguments
    # What a model wrote wrong it sees as it wrote it.
    assert '"arguments": "{broken"' in ours(CHATML).render(messages("{broken"))


JOINING = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + ' ' + c.function.arguments }}"
    "{% endfor %}{{ m.role + ':' + m.content }}{% endfor %}"
)
PRINTING = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments }}"
    "{% endfor %}{{ m.role + ':' + m.content }}{% endfor %}"
)
WITHOUT_CONTENT = (
    "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}{% for c in m.tool_calls %}"
    "{{ '<call>' + c.function.name + ' ' + c.function.arguments }}{% endfor %}{% else %}{{ m.role + ':' + m.content }}"
    "{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("source", [JOINING, PRINTING, WITHOUT_CONTENT], ids=["joins", "prints", "without content"])
@pytest.mark.parametrize("arguments", ['{"city": "Sankt Pölten"}', {"city": "Sankt Pölten"}], ids=["text", "object"])
def test_templates_that_write_arguments_as_they_are_get_text(source: str, arguments: Any) -> None:
    """DeepSeek's join strings; an object would be an error, or printed as Python prints it; R1's knows calls without
    content alone."""
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    for content in ({}, {"content": None}, {"content": ""}):
        messages = [{"role": "user", "content": "Well?"}, {"role": "assistant", "tool_calls": [call], **content}]
        assert '<call>weather {"city": "Sankt Pölten"}' in ours(source).render(messages)


def test_content_in_every_form_the_api_allows() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    for source in (CHATML, GEMMA):  # a template that also reads parts still gets the one string
        text = ours(source).render([{"role": "user", "content": parts}])
        assert text == ours(source).render([{"role": "user", "content": "one\ntwo"}])
    template = ours(PARTS_ONLY)
    assert template.render([{"role": "user", "content": parts}]) == "user:one\ntwo;"
    assert template.render([{"role": "user", "content": "text"}]) == "user:text;"
    options = {"add_generation_prompt": False, "continue_final_message": True}
    assert template.render([{"role": "assistant", "content": "text"}], **options) == "assistant:text"
    assert (
        ours(CHATML)
        .render([{"role": "assistant", "content": None, "tool_calls": None}])
        .startswith("<|im_start|>assistant\n<|im_end|>")
    )


@pytest.mark.parametrize("absent", [{}, {"tool_calls": None}, {"tool_calls": []}, {"tool_calls": [], "refs": []}])
def test_an_empty_list_is_absent(absent: dict[str, Any]) -> None:
    """Llama 3 asks only whether there are tool calls, and then that there is exactly one."""
    one_call = (
        "{% for m in messages %}{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}"
        "{{ raise_exception('one call at a time') }}{% endif %}CALL{% endif %}{{ m.content }}{% endfor %}"
    )
    assert ours(one_call).render([{"role": "assistant", "content": "Hi", **absent}]) == "Hi"


@pytest.mark.parametrize("content", [[{"type": "image_url", "image_url": {}}], ["text"], 7, {"text": "x"}])
def test_content_a_text_model_cannot_read(content: Any) -> None:
    with pytest.raises(TemplateError, match="text part"):
        ours(CHATML).render([{"role": "user", "content": content}])


def test_developer_is_system_where_the_template_does_not_know_it() -> None:
    messages = [{"role": "developer", "content": "Brief."}, {"role": "user", "content": "Hi"}]
    assert "<|im_start|>system\nBrief." in ours(CHATML).render(messages)
    knows = "{% for m in messages %}{% if m.role == 'developer' %}D{% else %}{{ m.role }}{% endif %}{% endfor %}"
    assert ours(knows).render(messages) == "Duser"


def test_named_templates() -> None:
    messages = [{"role": "user", "content": "x"}]
    named = {"default": "plain", "tool_use": "tools", "rag": "rag"}
    assert ours(named).render(messages) == "plain"
    assert ours(named).render(messages, tools=TOOLS) == "tools"
    assert ours(named).render(messages, tools=[]) == "plain"
    assert ours({"only": "one"}).render(messages, tools=TOOLS) == "one"
    with pytest.raises(TemplateError, match="no default chat template, only rag, tool_use"):
        ours({"tool_use": "a", "rag": "b"}).render(messages)


def test_methods_of_strings_inside_a_loop() -> None:
    source = "{% for m in messages %}{{ m.content.replace('a', 'b') }}{{ ','.join(['x', 'y']).center(5) }}{% endfor %}"
    assert ours(source).render([{"role": "user", "content": "pages"}]) == "pbges x,y "


def test_the_date_is_there() -> None:
    year = ours("{{ strftime_now('%Y') }}").render([{"role": "user", "content": ""}])
    assert year.isdigit()
    assert len(year) == 4


FAILING = {
    "raised": ("{{ raise_exception('No\n  system role') }}", "rejects the messages: No system role"),
    "undefined": ("{{ messages[0].nothing.more }}", "UndefinedError"),
    "none added": ("{{ messages[0].nothing + 'x' }}", "UndefinedError"),
    "syntax": ("a\n{% if %}", r"not valid Jinja \(line 2\)"),
    "unknown tag": ("{% include 'x' %}", "TypeError|no loader"),
    "type": ("{{ 1 + 'a' }}", "TypeError"),
    "sandbox": ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    "sandbox function": ("{{ raise_exception.__globals__['OctavoError'] }}", "SecurityError"),
    "changes messages": ("{{ messages.append(1) }}", "SecurityError"),
    "recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
}


@pytest.mark.parametrize("case", FAILING)
def test_failures_are_one_line(case: str) -> None:
    source, message = FAILING[case]
    with pytest.raises(TemplateError, match=message) as caught:
        ours(source).render([{"role": "user", "content": "x"}])
    assert "\n" not in str(caught.value)


def test_no_messages_and_no_overwriting_of_messages() -> None:
    with pytest.raises(TemplateError, match="no messages"):
        ours(CHATML).render([])
    variables: dict[str, Any] = {"messages": []}
    with pytest.raises(TemplateError, match="cannot be set: messages"):
        ours(CHATML).render([{"role": "user", "content": "x"}], **variables)
