"""A prediction server as people write it, for `benchmarks.serving`: FastAPI and `generate`.

    python benchmarks/serving_peer.py def|async FOLDER PORT

One request, one generate call. ``def`` lets FastAPI run requests in its thread pool, ``async``
runs them on the event loop, one after the other. It imports nothing of this project, is told the
same model and the same limits, and reads one text a request.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer


class Parameters(BaseModel):
    max_output_tokens: int = 64


class Request(BaseModel):
    instances: list[str]
    parameters: Parameters = Parameters()


def build_app(kind: str, folder: str) -> FastAPI:
    both = AutoConfig.from_pretrained(folder).is_encoder_decoder
    auto = AutoModelForSeq2SeqLM if both else AutoModelForCausalLM
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    ends = json.loads((Path(folder) / "ends.json").read_text())
    app = FastAPI()

    def answer(request: Request) -> dict[str, Any]:
        text = request.instances[0] if both else request.instances[0] + "\n"
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=both)
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs.input_ids,
                attention_mask=inputs.attention_mask,
                max_new_tokens=request.parameters.max_output_tokens,
                do_sample=False,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = output[0] if both else output[0, inputs.input_ids.shape[1] :]
        text = tokenizer.decode(new, skip_special_tokens=True).strip()
        return {"predictions": [{"output_text": text}]}

    async def answer_in_turn(request: Request) -> dict[str, Any]:
        return answer(request)

    app.post("/predict")(answer if kind == "def" else answer_in_turn)
    app.get("/health")(lambda: {"status": "ok"})
    return app


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, folder, port = sys.argv[1:]
    uvicorn.run(build_app(kind, folder), port=int(port), log_level="warning", access_log=False)
