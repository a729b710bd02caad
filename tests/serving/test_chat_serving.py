"""Conversations over HTTP: the prompts of training, and a clear refusal everywhere else."""

import json

import pytest

from pipestill.models import chat
from pipestill.models.student import Student, save_student
from tests.models.chatml import CHATML, HISTORY, INST, chat_tokenizer
from tests.serving.test_app import client_for, wait_until_healthy


def chat_folder(folder, template=CHATML, **info):
    """A small random Llama whose tokenizer has a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    size = {"vocab_size": 304, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
    model = LlamaForCausalLM(LlamaConfig(**size, **heads, pad_token_id=0, eos_token_id=1))
    facts = {"objective": "tuned", "style": "chat", "max_input_tokens": 200}
    facts |= {"max_output_tokens": 12, "instruction": ""}
    save_student(model, chat_tokenizer(template), folder, {**facts, **info})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return chat_folder(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def client(folder):
    with client_for(folder) as client:
        wait_until_healthy(client)
        yield client


def ask(client, *instances):
    return client.post("/predict", json={"instances": list(instances)})


def test_a_conversation_is_read_as_in_training(client, folder):
    direct = Student.load(str(folder))
    conversation = chat.Conversation("and now?", HISTORY)
    (expected,) = direct.answer([conversation], batch_size=1, max_new_tokens=256)
    (prompt,) = direct.renderer.prompts("predict", [conversation])
    written = direct.renderer.tokenizer.decode(prompt.ids)
    assert written.startswith("<|im_start|>system\nBe short.<|im_end|>")
    assert written.endswith("<|im_start|>assistant\n")
    found = ask(client, {"messages": HISTORY}).json()["predictions"]
    assert found == [
        {
            "output_text": expected.text,
            "prompt_tokens": expected.prompt_tokens,
            "output_tokens": expected.output_tokens,
        }
    ]


def test_a_conversation_is_streamed(client):
    whole = ask(client, {"messages": HISTORY}).json()
    body = {"instances": [{"messages": HISTORY}], "parameters": {"stream": True}}
    lines = client.post("/predict", json=body).text.splitlines()
    *pieces, last = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert last == whole
    assert "".join(piece["text"] for piece in pieces) == whole["predictions"][0]["output_text"]


def test_both_ways_to_write_a_conversation_are_the_same(client):
    """`author` and `context`, as rows of chats may have them."""
    turns = [{"author": turn["role"], "content": turn["content"]} for turn in HISTORY[1:]]
    one, other = {"messages": HISTORY}, {"messages": turns, "context": "Be short."}
    first, second = ask(client, one, other).json()["predictions"]
    assert first == second


def test_a_text_is_one_user_turn_and_both_share_a_request(client):
    turn = {"messages": [{"role": "user", "content": "red"}]}
    first, second, third = ask(client, "red", turn, {"input_text": "red"}).json()["predictions"]
    assert first == second == third


USER = {"role": "user", "content": "a"}
BAD = [
    ({"messages": []}, "instances[0]: messages has no message"),
    ({"messages": "hello"}, "instances[0].messages: Input should be a valid array"),
    ({"messages": None}, "instances[0].messages:"),
    ({"messages": [3]}, "instances[0]: messages[0] must be an object"),
    ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role must be user"),
    ({"messages": [{"role": "user"}]}, "messages[0].content is missing"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages[0].content is an empty message"),
    ({"messages": [USER, USER]}, "messages must be user, assistant or system, with"),
    (
        {"messages": [USER, {"role": "assistant", "content": "b"}]},
        "instances[0]: the last of messages must be the user's",
    ),
    ({"messages": [USER], "input_text": "a"}, "instances[0]: input_text and messages are both"),
    ({"messages": [USER], "context": 3}, "instances[0].context:"),
    (
        {"messages": [{"role": "user", "content": "a b " * 200}]},
        "instances[0].messages: longer than 200 tokens",
    ),
]


@pytest.mark.parametrize(("instance", "says"), BAD, ids=range(len(BAD)))
def test_bad_conversations_are_refused_in_one_sentence(client, instance, says):
    answer = ask(client, instance)
    assert answer.status_code == 400
    assert says in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert len(answer.text) < 400


def test_many_turns_cost_no_more_than_reading_them(client):
    turns = [{"role": r, "content": "a"} for r in ("user", "assistant")] * 15_000
    answer = ask(client, {"messages": [*turns, USER]})
    assert (answer.status_code, "longer than" in answer.text) == (400, True)


@pytest.mark.parametrize("style", ["plain", "prefix"])
def test_a_model_that_is_not_tuned_for_chat_says_so(tmp_path, style):
    with client_for(chat_folder(tmp_path / "m", style=style)) as client:
        wait_until_healthy(client)
        answer = ask(client, "red", {"messages": HISTORY})
        assert answer.status_code == 400
        said = "instances[1].messages: this model is not tuned for chat (its style is"
        assert answer.json()["error"].startswith(f"{said} {style})")
        assert ask(client, "red").status_code == 200
        assert client.get("/health").status_code == 200


def test_a_template_that_refuses_a_conversation_refuses_that_request_only(tmp_path):
    strict = INST.replace("no system role", "no roles today").replace(
        "messages[0]['role'] == 'system'", "messages|length > 2"
    )
    with client_for(chat_folder(tmp_path / "m", strict)) as client:
        wait_until_healthy(client)
        answer = ask(client, {"messages": HISTORY[1:]})
        assert answer.status_code == 400
        assert "instances[0].messages: the tokenizer's chat template" in answer.json()["error"]
        assert ask(client, {"messages": HISTORY[1:2]}).status_code == 200
