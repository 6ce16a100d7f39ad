"""Flags of vLLM's and Triton's that `octavo serve` does not have, and what to do instead."""

ALWAYS_SO = "leave it out: that is always so"

FOREIGN_FLAGS = {
    "--chat-template": "leave it out: the model's own is used, or a request's with --trust-request-chat-template",
    "--disable-log-requests": "leave it out: the log has a line for each request, never its text",
    "--disable-log-stats": "leave it out: statistics are at /metrics, not in the log",
    "--download-dir": "set OCTAVO_CACHE to keep models elsewhere",
    "--enable-auto-tool-choice": ALWAYS_SO,
    "--enable-chunked-prefill": ALWAYS_SO,
    "--enable-reasoning": ALWAYS_SO,
    "--enforce-eager": "leave it out: there is nothing to compile",
    "--generation-config": "leave it out: the model's generation_config.json holds for what a request leaves open",
    "--guided-decoding-backend": "leave it out: there is one, llguidance",
    "--revision": "give a folder: fetch the revision with huggingface_hub first",
    "--structured-outputs-config": "leave it out: there is one backend, llguidance",
    "--swap-space": "leave it out: what has no room is computed again",
    "--tokenizer": "leave it out: the model's own is used",
    "--trust-remote-code": "leave it out: code of a model's repository is never run",
    # Triton's; cli/triton_flags.py has those that are taken
    "--model-load-gpu-limit": "leave it out: a model that does not fit is refused by what computes it",
    "--trace-file": "--trace-config triton,file=PATH says the same",
    "--trace-level": "--trace-config level=LEVEL says the same",
    "--trace-rate": "--trace-config rate=N says the same",
    "--trace-count": "--trace-config count=N says the same",
    "--trace-log-frequency": "--trace-config triton,log-frequency=N says the same",
}
