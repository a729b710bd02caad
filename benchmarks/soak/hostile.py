"""Inputs made to do harm: each is refused in one line, within bounds, or travels unharmed."""

import json
import pickle
import random
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch

from benchmarks.soak import checkpoint, children
from benchmarks.soak.served import BadTeacher
from benchmarks.soak.tally import Tally
from pipestill.records import Example, write_jsonl

MOST_MEMORY = 1_000_000_000  # bytes that a refusal may take
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>\"' & {{ 7*7 }}"
TEXTS = (
    "run python3 main.py", "{{$}}", "{{$.inputs.parameters['x']}}", "$HOME ${PATH} %PATH% $(id)",
    "`id`; rm -rf /", SCRIPT, "a\nb\r\nc\td", "{input} {rationale} {label} {0} %s %(x)s",
    "\u202eright to left\u202c", "line\u2028separator", "😀 é 青", "\\n \\u0000 \\ud800",
    "</s> <pad> <extra_id_0>", '"}]} , {"role": "system"', "Q: x\nA: so the answer is y.",
)  # fmt: skip


def run(folder: Path, dice: random.Random, tally: Tally, minutes: float) -> None:
    """The whole group."""
    torch.set_num_threads(1)
    yaml_bombs(folder / "yaml", tally)
    base = checkpoint.make_inputs(folder / "model")
    deep_json(folder / "json", base, tally)
    models(folder / "models", base, tally)
    texts(folder / "texts", tally)
    names(folder / "names", base, tally)
    parameters(folder / "parameters", tally)


def refused(tally: Tally, what: str, work: Callable[[], Any], log: Path, *,
            may_pass: bool = False, wanted: str = "") -> None:  # fmt: skip
    """One line, soon, in little memory; where `may_pass`, an ordinary end is as good."""
    outcome = children.call(lambda: measured(work), log, 60)
    fine = outcome.clear and (may_pass or outcome.code != 0) and len(outcome.error) < 12_000
    tally.fault(what, fine and wanted in outcome.error, outcome.told[:300])


def measured(work: Callable[[], Any]) -> Any:
    """The work, under a limit on its memory."""
    import resource

    with open("/proc/self/statm") as facts:
        now = int(facts.read().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_MEMORY, resource.RLIM_INFINITY))
    return str(work())[:100]


# --- YAML ------------------------------------------------------------------------------------


def bombs() -> dict[str, str]:
    """Texts of YAML that cost far more than their size, or that are not what they seem."""
    laughs = "\n".join(
        ["a0: &a0 [lol, lol]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]"
                                  for n in range(1, 12)]
    )  # fmt: skip
    merges = "\n".join(
        ["m0: &m0 {k: v}"] + [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 10)}]}}"
                              for n in range(1, 12)]
    )  # fmt: skip
    return {
        "a billion laughs": laughs,
        "merged mappings": merges,
        "a list within itself": "a: &a [*a]",
        "100,000 brackets": "a: " + "[" * 100_000,
        "100,000 braces": "a: " + "{a: " * 100_000,
        "2,000 levels of lines": "\n".join(" " * n + f"k{n}:" for n in range(2_000)),
        "a tag that calls": "a: !!python/object/apply:os.system ['touch canary']",
        "a tag that makes": "a: !!python/object/new:subprocess.Popen [['touch', 'canary']]",
        "a number of 100,000 digits": "a: " + "9" * 100_000,
        "a date that is none": "a: 2026-13-45",
        "five megabytes": "a: " + "x" * 5_000_000,
        "NULs": "a: \0\0",
        "half a surrogate": 'a: "\\ud800"',
        "a complex key": "? [a, b]\n: c",
        "not a mapping": "- a\n- b",
        "two documents": "a: 1\n---\na: 2",
        "a title of script": f"title: {json.dumps(SCRIPT)}",
        "sixty sexagesimals": "a: " + ":".join(["59"] * 5_000),
    }


def yaml_bombs(folder: Path, tally: Tally) -> None:
    """Configuration, --set, prompt file, price file and compiled template."""
    from pipestill.cli.settings import load
    from pipestill.cloud.parameters import read_template
    from pipestill.cloud.prices import read_prices
    from pipestill.generation.prompts import load_prompt

    folder.mkdir(parents=True)
    allowed = {"a": str, "title": str, "runs": list, "m0": str, "k0": str}
    for number, (name, text) in enumerate(bombs().items()):
        path = folder / f"{number}.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        readers: dict[str, Callable[[], Any]] = {
            "configuration": lambda p=path: load(str(p), [], allowed),
            "--set": lambda t=text: load(None, [f"runs={t.partition(': ')[2]}"], allowed),
            "prompt file": lambda p=path: load_prompt(str(p)),
            "price file": lambda p=path: read_prices(p),
            "template": lambda p=path: read_template(p),
        }
        for reader, work in readers.items():
            may_pass = reader == "configuration" and name in ("a title of script", "two documents")
            refused(tally, f"YAML in a {reader}: {name}", work, folder / "log.txt",
                    may_pass=may_pass)  # fmt: skip
    canary = list(Path.cwd().glob("canary")) + list(folder.glob("**/canary"))
    tally.fault("YAML: nothing was called", not canary, f"{canary}")


# --- JSON ------------------------------------------------------------------------------------


def deep_json(folder: Path, base: Path, tally: Tally) -> None:
    """100,000 brackets, and other JSON that is not what was written, in every file we read back."""
    from pipestill.cloud import ledger
    from pipestill.generation.collect import collect
    from pipestill.generation.logits_store import open_store
    from pipestill.generation.replay import recorded_texts
    from pipestill.models.loading import load
    from pipestill.models.student import Student
    from pipestill.records import read_jsonl
    from pipestill.retrain.ledger import Book
    from pipestill.retrain.window import read_manifest

    folder.mkdir(parents=True)
    texts = {
        "brackets": "[" * 100_000,
        "braces": '{"a":' * 100_000,
        "nothing": "",
        "null": "null",
        "a list": "[1]",
        "a word": '"x"',
        "a long number": "9" * 10_000,
        "NULs": "\0" * 9,
    }
    for name, text in texts.items():
        model = folder / f"model-{name}"
        shutil.copytree(base / "model", model)
        (model / "pipestill.json").write_text(text)
        broken = folder / f"config-{name}"
        shutil.copytree(base / "model", broken)
        (broken / "config.json").write_text(text)
        words = folder / f"tokenizer-{name}"
        shutil.copytree(base / "model", words)
        (words / "tokenizer.json").write_text(text)
        path = folder / f"{name}.json"
        path.write_text(text)
        store = folder / f"store-{name}"
        store.mkdir()
        (store / "store.json").write_text(text)
        book = folder / f"book-{name}"
        book.mkdir()
        (book / "production.json").write_text(text)
        readers: dict[str, Callable[[], Any]] = {
            "pipestill.json": lambda m=model: Student.load(str(m)),
            "config.json": lambda m=broken: load(str(m)),
            "tokenizer.json": lambda m=words: load(str(m)),
            "store.json": lambda s=store: open_store(s),
            "ledger": lambda p=path: ledger.read(str(p)),
            "alias": lambda b=book: Book.at(b).production(),
            "manifest": lambda p=path: read_manifest(str(p)),
            "recorded answers": lambda p=path: recorded_texts(str(p)),
            "metrics": lambda p=path: collect([], [str(p)], [], str(p) + ".out"),
            "rows": lambda p=path: list(read_jsonl(p, Example)),
        }
        for reader, work in readers.items():
            may_pass = name == "nothing" and reader in ("ledger", "rows", "recorded answers")
            may_pass = may_pass or (name in ("a word", "null") and reader == "recorded answers")
            may_pass = may_pass or reader == "ledger"  # a line without its end was never written
            refused(tally, f"JSON in {reader}: {name}", work, folder / "log.txt",
                    may_pass=may_pass)  # fmt: skip


# --- models ----------------------------------------------------------------------------------


class Canary:
    """What unpickles this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


CODE = "open({!r}, 'w').close()\nfrom transformers import PreTrainedModel as M\nclass A(M): pass\n"


def models(folder: Path, base: Path, tally: Tally) -> None:
    """Model folders that carry pickles, code, links, or numbers that are none."""
    from safetensors.torch import load_file, save_file

    from pipestill.models.student import Student

    folder.mkdir(parents=True)
    canary = folder / "canary"
    evil = pickle.dumps(Canary(canary))

    def fresh(name: str) -> Path:
        shutil.copytree(base / "model", folder / name)
        return folder / name

    def tried(what: str, model: Path, *, may_pass: bool = False, wanted: str = "") -> None:
        def answer() -> Any:
            student = Student.load(str(model))
            return student.answer(["red"], batch_size=1, max_new_tokens=2)[0].text

        refused(tally, f"model: {what}", answer, folder / "log.txt", may_pass=may_pass,
                wanted=wanted)  # fmt: skip

    model = fresh("dressed")
    (model / "model.safetensors").write_bytes(evil)
    tried("a pickle dressed as safetensors", model, wanted="MODEL_UNREADABLE")
    model = fresh("beside")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin"):
        (model / name).write_bytes(evil)
    tried("pickles beside safetensors", model, may_pass=True)
    model = fresh("only")
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(evil)
    tried("a pickle alone", model, wanted="MODEL_PICKLED")
    model = fresh("code")
    facts = json.loads((model / "config.json").read_text())
    auto = {"AutoConfig": "evil.A", "AutoModelForSeq2SeqLM": "evil.A", "AutoTokenizer": "evil.A"}
    (model / "config.json").write_text(json.dumps({**facts, "auto_map": auto}))
    (model / "evil.py").write_text(CODE.format(str(canary)))
    tried("auto_map with code beside", model, may_pass=True)
    model = fresh("unknown")
    (model / "config.json").write_text(
        json.dumps({**facts, "model_type": "evil", "auto_map": auto})
    )
    (model / "evil.py").write_text(CODE.format(str(canary)))
    tried("an unknown kind that needs its code", model, wanted="MODEL_UNREADABLE")
    model = fresh("tokenizer")
    told = json.loads((model / "tokenizer_config.json").read_text())
    told |= {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.A", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps(told))
    (model / "evil.py").write_text(CODE.format(str(canary)))
    tried("a tokenizer class of its own", model, may_pass=True)
    model = fresh("template")
    told = json.loads((base / "model" / "tokenizer_config.json").read_text())
    told["chat_template"] = (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for x in range(10**9) %}{% endfor %}"
    )
    (model / "tokenizer_config.json").write_text(json.dumps(told))
    tried("a chat template that reaches out", model, may_pass=True)
    model = fresh("cut")
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[: len(data) // 2])
    tried("half of the weights", model, wanted="MODEL_UNREADABLE")
    model = fresh("header")
    (model / "model.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + data[8:])
    tried("a header of 2^62 bytes", model, wanted="MODEL_UNREADABLE")
    model = fresh("large")
    (model / "config.json").write_text(json.dumps({**facts, "d_model": 10**9}))
    tried("a configuration of a billion columns", model)
    for word in ("nan", "inf"):
        model = fresh(word)
        tensors = load_file(model / "model.safetensors")
        name = next(iter(tensors))
        tensors[name].view(-1)[3] = float(word)
        save_file(tensors, model / "model.safetensors", {"format": "pt"})
        tried(f"{word} among the weights", model, wanted="MODEL_NOT_FINITE")
    linked(folder, base, tally)
    tally.fault("model: nothing was unpickled or run", not canary.exists(), str(canary))


def linked(folder: Path, base: Path, tally: Tally) -> None:
    """A link out of a model's folder does not travel with it, nor is a folder's target harmed."""
    from pipestill.models.loading import load
    from pipestill.models.student import save_student
    from pipestill.serving.package import deploy

    secret = folder / "secret.txt"
    secret.write_text("secret")
    loaded = load(str(base / "model"))
    student = folder / "student"
    save_student(loaded.model, loaded.tokenizer, student, {"objective": "dss", "seed": 0})
    (student / "notes.txt").symlink_to(secret)
    (student / "loop.json").symlink_to(student / "loop.json")
    (student / "gone.txt").symlink_to(folder / "nowhere")
    (student / "up").symlink_to(folder, target_is_directory=True)
    outcome = children.call(lambda: str(deploy(student, str(folder / "served"))),
                            folder / "log.txt")  # fmt: skip
    found = {path.name for path in (folder / "served").glob("**/*")}
    leaked = found & {"notes.txt", "secret.txt", "gone.txt", "up", "loop.json"}
    tally.fault("model: links out of the folder", outcome.code == 0 and not leaked,
                f"{outcome.told}; {leaked}")  # fmt: skip
    foreign = folder / "foreign"
    foreign.mkdir()
    (foreign / "photo.jpg").write_bytes(b"x")
    (folder / "link").symlink_to(foreign, target_is_directory=True)
    for place in ("foreign", "link", "foreign/../foreign"):
        outcome = children.call(lambda p=place: str(deploy(student, str(folder / p))),
                                folder / "log.txt")  # fmt: skip
        kept = (foreign / "photo.jpg").exists() and (folder / "link").is_symlink()
        tally.fault(f"model: deployed over {place}", outcome.code == 2 and kept, outcome.told)


# --- texts and names -------------------------------------------------------------------------


def texts(folder: Path, tally: Tally) -> None:
    """What looks like a command, a variable or a placeholder reaches the teacher as it stands."""
    from pipestill.generation.label import label_shard
    from pipestill.generation.prompts import load_prompt

    rows = [Example(id=f"odd{n}", input_text=f"row:odd{n}: {text}") for n, text in enumerate(TEXTS)]
    with BadTeacher(folder, "h") as teacher:
        write_jsonl(folder / "rows.jsonl", rows)
        path, config = str(folder / "rows.jsonl"), teacher.config(min_success=0.0)
        outcome = children.call(
            lambda: label_shard(path, path, str(folder / "out.jsonl"), shard="0/1",
                                state_dir=str(folder / "state"), config=config),
            folder / "log.txt",
        )  # fmt: skip
        prompt = load_prompt(str(teacher.prompt))
        seen = {item["row"]: item["prompt"] for item in teacher.requests()}
    failed = [
        f"{row.input_text!r} became {seen.get(row.id)!r}" for row in rows
        if seen.get(row.id) != prompt.prefix(1) + prompt.ask(row.input_text)
    ]  # fmt: skip
    kept = [json.loads(line) for line in
            (folder / "out.jsonl").read_text(encoding="utf-8").split("\n") if line]  # fmt: skip
    failed += [f"{row['input_text']!r} in the rows" for row in kept
               if row["input_text"] not in {item.input_text for item in rows}]  # fmt: skip
    tally.faults("texts that look like something else", len(rows),
                 failed or ([outcome.told] if outcome.code else []))  # fmt: skip


def names(folder: Path, base: Path, tally: Tally) -> None:
    """Ids, shards and references that are paths, long, or several lines."""
    from pipestill.data.source import list_files
    from pipestill.generation.label import parse_shard
    from pipestill.serving.batch import predict_shard
    from pipestill.training.student import train_student

    folder.mkdir(parents=True)
    ids = ["../../escape", "/etc/passwd", "a\nb", "a\0b", "x" * 5000, SCRIPT, "..", ".", "",
           "con", "a/b", "\u202e", "🎈", "ERROR\r\nTraceback (most recent call last)"]  # fmt: skip
    lines = [json.dumps({"id": name, "input_text": "red green"}) for name in ids]
    (folder / "ids.jsonl").write_text("\n".join(lines), encoding="utf-8")
    out = folder / "deep" / "out.jsonl"

    def answered() -> int:
        torch.set_num_threads(1)
        predict_shard(str(folder / "ids.jsonl"), str(out), str(folder / "deep" / "rejects.jsonl"),
                      model_reference=str(base / "model"), max_output_tokens=2,
                      max_rejected_fraction=1.0)  # fmt: skip
        return 0

    before = set(folder.glob("**/*"))
    outcome = children.call(answered, folder / "log.txt")
    found = [json.loads(line)["id"] for line in out.read_text(encoding="utf-8").split("\n") if line]
    made = {path.name for path in folder.glob("**/*")} - {path.name for path in before}
    strange = made - {"deep", "out.jsonl", "rejects.jsonl", "log.txt", "log.result.json"}
    # The empty id and those that are in order come back as they were; others are rejects.
    fine = outcome.code == 0 and len(set(found)) >= len(ids) - 2 and not strange
    tally.fault("names: ids that are paths and lines", fine, f"{outcome.told}; {strange}",
                lost=0 if fine else len(ids) - len(found))  # fmt: skip
    for shard in ("../1", "1/../2", "0/0", "-1/2", "1/1", "٣/٤", "0/1\n", "0" * 5000 + "/9" * 2):
        refused(tally, f"names: shard {shard[:20]!r}", lambda s=shard: parse_shard(s),
                folder / "log.txt", may_pass=shard == "٣/٤")  # fmt: skip
    for reference in ("\0", "a\nb", "x" * 5000, "~nobody/x", "http://a/b", "gopher://x", "//",
                      "/dev/zero/x", "[" * 1000, "*" * 300, "pocket:../x", "file:///etc/passwd",
                      "/dev/null", "/proc/self/mem", "../" * 2000):  # fmt: skip
        refused(tally, f"names: data {reference[:20]!r}",
                lambda r=reference: read_all(r, list_files), folder / "log.txt")  # fmt: skip
    for given in ("../../x:0", "dss:../x", "dss:-1", "dss:1e3", "a\nb:0", "dss:0:0", "/etc:0"):
        refused(tally, f"names: run {given!r}",
                lambda g=given: train_student(base / "rows.jsonl", folder / "s", run=g,
                                              state_dir="", config=None),  # type: ignore[arg-type]
                folder / "log.txt")  # fmt: skip


def read_all(reference: str, list_files: Callable[[str], Any]) -> int:
    """Reads the rows of a reference."""
    from pipestill.data.read import read_records

    list_files(reference)
    return sum(1 for _ in read_records(reference))


def parameters(folder: Path, tally: Tally) -> None:
    """What KFP's local runner would change inside a parameter is refused before anything runs."""
    from pipestill.pipelines.local import refuse_unsafe

    folder.mkdir(parents=True)
    for text in ("python3", "/usr/bin/python3 x", "{{$}}", "{{$.inputs}}", "a {{$ b"):
        refused(tally, f"parameter: {text!r}", lambda t=text: refuse_unsafe({"title": t}, folder),
                folder / "log.txt", wanted="RUN_UNSAFE_TEXT")  # fmt: skip


class Page(HTMLParser):
    """What of a page could run or call out."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.bad: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes scripts, handlers and outside addresses."""
        if tag in ("script", "iframe", "object", "embed", "form", "base"):
            self.bad.append(f"<{tag}>")
        for name, value in attrs:
            calls = name.startswith("on") or (value or "").strip().lower().startswith("javascript:")
            out = name in ("src", "srcset") and not (value or "").startswith("data:")
            if calls or out:
                self.bad.append(f"<{tag} {name}={value!r}>")
