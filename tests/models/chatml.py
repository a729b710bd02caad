"""A tiny tokenizer with a ChatML template like those that real chat models have."""

from typing import Any

from tests.training.tiny import make_tokenizer

CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
# Llama 2's way: no mark before a reply, the end mark after it, the system text within a user turn.
INST = (
    "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no system role') }}{%- endif -%}"
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'user' -%}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{%- else -%}{{ ' ' + m['content'] + ' ' + eos_token }}{%- endif -%}"
    "{%- endfor -%}"
)
HISTORY = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "red or blue?"},
    {"role": "assistant", "content": "red"},
    {"role": "user", "content": "and now?"},
]


def chat_tokenizer(template: str = CHATML, closes: bool = False) -> Any:
    """With the two marks as special tokens; ``</s>`` stays the tokenizer's own end mark."""
    tokenizer = make_tokenizer(closes)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer
