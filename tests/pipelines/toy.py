"""A small pipeline with the shape of the real one, whose steps are quick and need no model."""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from pipestill.components._base import component
from pipestill.components.data_digest import data_digest


@component
def prep(dataset_uri: str, cache_key: str, train: Output[Dataset], metrics: Output[Metrics]):
    import shutil

    from pipestill.records import write_json

    shutil.copyfile(dataset_uri, train.path)
    print("read the rows")
    write_json(metrics.path, {"cache_key": cache_key})


@component
def student(
    train: Input[Dataset],
    cache_key: str,
    model: Output[Model],
    metrics: Output[Metrics],
    run: str = "a:0",
    state_dir: str = "",
    fail: str = "",
    student_model_reference: str = "pocket-base",
):
    import os
    import pathlib
    import time

    from pipestill.errors import UserError, WorkError
    from pipestill.records import write_json

    with open(os.path.join(state_dir, "calls"), "a") as calls:
        calls.write(run + "\n")
    if fail == "user:" + run:
        raise UserError("ROW_BAD", "line 3: no label", "add it")
    if fail == "work:" + run:
        raise WorkError("SERVER_GONE", "no answer")
    if fail == "bug:" + run:
        raise ZeroDivisionError("one\ntwo")
    if fail == "kill:" + run:
        os.kill(os.getpid(), 9)
    if fail in ("stop once:" + run, "kill once:" + run):
        first = pathlib.Path(state_dir, "first." + run.replace(":", "."))
        if not first.exists():
            first.touch()
            print("first attempt", flush=True)
            if fail.startswith("kill"):
                os.kill(os.getpid(), 9)
            raise SystemExit(75)
    if fail == "save":
        import signal

        def save(*_):
            time.sleep(0.5)
            pathlib.Path(state_dir, "saved." + run.replace(":", ".")).touch()
            raise SystemExit(75)

        signal.signal(signal.SIGTERM, save)
    if fail in ("sleep", "save"):
        pathlib.Path(state_dir, "sleeping." + run.replace(":", ".")).write_text(str(os.getpid()))
        time.sleep(60)
    os.makedirs(model.path)
    pathlib.Path(model.path, "weights").write_text(run)
    write_json(
        metrics.path,
        {
            "run": run,
            "cache_key": cache_key,
            "threads": os.environ.get("OMP_NUM_THREADS"),
            "waiting": os.environ.get("OMP_WAIT_POLICY"),
        },
    )


@component
def compare(
    students: Input[list[Model]],
    train_metrics: Input[list[Metrics]],
    page: Output[HTML],
    summary: Output[Metrics],
) -> str:
    import json
    import pathlib

    from pipestill.records import write_json

    runs = [json.loads(pathlib.Path(item.path).read_text()) for item in train_metrics]
    weights = [pathlib.Path(item.path, "weights").read_text() for item in students]
    pathlib.Path(page.path).write_text("<p>done</p>")
    write_json(summary.path, {"runs": runs, "weights": weights})
    return "better"


class Outputs(NamedTuple):
    page: HTML
    summary: Metrics
    verdict: str


def build() -> Any:
    @dsl.pipeline(name="toy")
    def toy(
        dataset_uri: str,
        runs: list = ["a:0", "b:1", "c:2"],  # noqa: B006
        state_dir: str = "",
        fail: str = "",
        rate: float = 0.5,
        steps: int = 3,
        student_model_reference: str = "pocket-base",
    ) -> Outputs:
        digest = data_digest(dataset_uri=dataset_uri).set_caching_options(False)
        data = prep(dataset_uri=dataset_uri, cache_key=digest.output)
        with dsl.ParallelFor(runs) as run:
            made = student(
                train=data.outputs["train"],
                cache_key=digest.output,
                run=run,
                state_dir=state_dir,
                fail=fail,
                student_model_reference=student_model_reference,
            )
        result = compare(
            students=dsl.Collected(made.outputs["model"]),
            train_metrics=dsl.Collected(made.outputs["metrics"]),
        )
        return Outputs(
            page=result.outputs["page"],
            summary=result.outputs["summary"],
            verdict=result.outputs["Output"],
        )

    return toy
