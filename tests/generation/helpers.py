"""Tiny models, a loopback server and a teacher's settings, for the tests of this folder."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pipestill.config import TeacherConfig
from pipestill.generation.prompts import load_prompt, prompt_names
from pipestill.records import Example

NOTES = [
    "a red kettle, boxed",
    "two blue cups",
    "one lamp without its shade, returned late",
    "ten spoons",
    "a chair",
    "the green umbrella that was never opened, with its bill",
]


def rows(count: int, gold: str | None = None) -> list[Example]:
    return [
        Example(
            id=f"r{number:04d}",
            input_text=f"{NOTES[number % len(NOTES)]} ({number})",
            output_text=gold,
            source_row=number,
        )
        for number in range(count)
    ]


def tiny_tokenizer() -> Any:
    """A byte-level tokenizer with some merges, a start mark, and GPT-2's splitting at line ends."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    prompts = [load_prompt(name) for name in prompt_names()]
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [prompt.prefix(len(prompt.examples)) for prompt in prompts]
    # Two line ends become one token where nothing follows, as in GPT-2.
    fast.train_from_iterator([*texts, *["\n\n"] * 500], trainer)
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def tiny_model(kind: str, vocab: int = 400) -> Any:
    """A random model with large weights, so that its greedy text is not one repeated token."""
    import torch
    import transformers as tf

    torch.set_num_threads(1)
    torch.manual_seed(7)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    small = {
        "vocab_size": vocab, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "initializer_range": 0.3,
    }  # fmt: skip
    if kind == "llama":
        model: Any = tf.LlamaForCausalLM(tf.LlamaConfig(**small, **ends))
    elif kind == "mistral":
        model = tf.MistralForCausalLM(tf.MistralConfig(**small, **ends, sliding_window=64))
    elif kind == "wide_mistral":
        model = tf.MistralForCausalLM(tf.MistralConfig(**small, **ends, sliding_window=1024))
    elif kind == "gpt2":
        config = tf.GPT2Config(
            vocab_size=vocab, n_embd=32, n_layer=2, n_head=4, n_positions=1024,
            initializer_range=0.3, **ends,
        )  # fmt: skip
        model = tf.GPT2LMHeadModel(config)
    else:
        config = tf.T5Config(
            vocab_size=vocab, d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8,
            initializer_factor=3.0, decoder_start_token_id=0, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        model = tf.T5ForConditionalGeneration(config)
    return model.eval()


def save_tiny(folder: Path, kind: str) -> str:
    tiny_model(kind).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


class Server:
    """What the loopback server saw and does. `script` holds behaviours for the next requests."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.prompts: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.script: list[str] = []
        self.answered = 0
        self.delay = 0.0
        self.keys: set[str] = set()
        self.reply: Callable[[str], str] = lambda prompt: "It is new. So the answer is yes."
        self.url = ""

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        chat = "messages" in body
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        text = self.reply(prompt)
        inner = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        return {
            "id": "x", "object": "chat.completion" if chat else "text_completion", "created": 1,
            "model": body["model"], "choices": [{"index": 0, "finish_reason": "stop", **inner}],
            "usage": {"prompt_tokens": len(prompt) // 4, "completion_tokens": 7,
                      "total_tokens": len(prompt) // 4 + 7,
                      "prompt_tokens_details": {"cached_tokens": 5}},
        }  # fmt: skip


@contextmanager
def server() -> Iterator[Server]:
    """An OpenAI-compatible server on this machine."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.bodies.append(body)
                state.keys.add(self.headers.get("Authorization", ""))
                action = state.script.pop(0) if state.script else "answer"
                prompt = body["messages"][0]["content"] if "messages" in body else body["prompt"]
                state.prompts.append(prompt)
            time.sleep(state.delay)
            if action == "hang":
                time.sleep(1.0)
            if action.isdigit():
                return self._send(int(action), {"error": {"message": f"status {action}"}})
            if action == "garbage":
                return self._send(200, "<html>it works!</html>")
            if action == "no choices":
                return self._send(200, {"object": "error", "message": "busy"})
            with state.lock:
                state.answered += 1
            return self._send(200, state.completion(body))

        def _send(self, status: int, value: Any) -> None:
            data = (value if isinstance(value, str) else json.dumps(value)).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                if status == 429:
                    self.send_header("Retry-After", "0.05")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                pass  # the client has given up or was killed

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    state.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def server_config(state: Server, **changes: Any) -> TeacherConfig:
    values: dict[str, Any] = {
        "backend": "openai", "base_url": state.url, "model_reference": "some-model",
        "prompt": "generic.v1", "shots": 2, "concurrency": 4, "max_retries": 4, "timeout_s": 5.0,
        "api_key_env": "PIPESTILL_TEST_NO_KEY",
    }  # fmt: skip
    return TeacherConfig(**values | changes)
