"""Batch prediction by the platform: our serving image, its machines, our rows in and out.

The rows are checked and numbered here before anything is paid for. The platform answers in any
order and leaves out what failed, so its output is put in order by those numbers, and a row that is
missing there is a reject. A job is found again by the digest of what it was asked, so that a run
that was stopped waits for the old job and does not pay for another one.
"""

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipestill.cloud import client, objects, registry, watch
from pipestill.cloud.client import Settings, explained
from pipestill.cloud.deploy_options import DeployOptions, check
from pipestill.cloud.promotion import Say
from pipestill.data.raw import BadRow
from pipestill.errors import UserError, WorkError
from pipestill.records import write_jsonl
from pipestill.serving.batch import BatchConfig
from pipestill.serving.batch import check as check_batch
from pipestill.serving.batch_rows import Asked, read_shard

LABEL = "pipestill-batch"
MOST_ROWS = 128  # of a request, which is what the server takes
SUCCEEDED = ("JOB_STATE_SUCCEEDED", "JOB_STATE_PARTIALLY_SUCCEEDED")
ENDED = (*SUCCEEDED, "JOB_STATE_FAILED", "JOB_STATE_CANCELLED", "JOB_STATE_EXPIRED")


@dataclass(frozen=True, kw_only=True)
class BatchOrder:
    """One job. `model` is a display or resource name, of the version that `alias` names."""

    input_uri: str
    model: str
    settings: Settings
    config: BatchConfig = field(default_factory=BatchConfig)
    options: DeployOptions = field(default_factory=DeployOptions)


def predict_on_platform(
    order: BatchOrder, output_path: str | Path, rejects_path: str | Path, say: Say = print
) -> dict[str, Any]:
    """Has the platform answer the rows; waits, and writes what `predict_shard` writes.

    Returns:
        ``rows_read``, ``rows_answered``, ``rows_rejected``, ``prompt_tokens``, ``output_tokens``,
        ``job``, ``model``.

    Raises:
        UserError: ``BATCH_SETTING``, ``BATCH_REJECTED``, ``DEPLOY_MODEL``, ``CLOUD_…``.
        WorkError: ``BATCH_JOB`` where the job ends otherwise; ``BATCH_INCOMPLETE`` where its output
            has a row twice, or one that was not asked.
    """
    _check(order)
    rows, bad, total = read_shard(order.input_uri, "0/1")
    _check_share(bad, total, order.config)
    settings = client.init(order.settings)
    version = _version(order, settings)
    source, digest = _upload(rows, version, order)
    job = _job(order, settings, version, source, digest)
    say(f"job {job.resource_name}")
    _wait(job, settings, say)
    answers, failed = _outputs(job.output_info.gcs_output_directory, rows)
    bad = sorted([*bad, *failed], key=lambda row: row.source_row)
    write_jsonl(output_path, answers)
    write_jsonl(rejects_path, bad)
    _check_share(bad, total, order.config)
    return {
        "rows_read": total,
        "rows_answered": len(answers),
        "rows_rejected": len(bad),
        "prompt_tokens": sum(row["prompt_tokens"] for row in answers),
        "output_tokens": sum(row["output_tokens"] for row in answers),
        "job": job.resource_name,
        "model": version.name,
    }


def _check(order: BatchOrder) -> None:
    check(order.options)
    check_batch(order.config)
    if order.config.batch_size > MOST_ROWS:
        found = order.config.batch_size
        raise UserError(
            "BATCH_SETTING", f"batch_size: found {found}, the server takes at most {MOST_ROWS}"
        )
    if not order.settings.staging_bucket:
        raise UserError(
            "CLOUD_BUCKET", "no staging bucket", "give gs://BUCKET for rows and answers"
        )


def _check_share(bad: list[BadRow], total: int, config: BatchConfig) -> None:
    if len(bad) > config.max_rejected_fraction * total:
        first = bad[0]
        raise UserError(
            "BATCH_REJECTED",
            f"{len(bad)} of {total} rows cannot be answered, allowed: "
            f"{config.max_rejected_fraction:.0%}; the first: {first.file}:{first.line} "
            f"{first.field}: {first.reason} {first.detail}".rstrip(),
            "correct the rows, or raise max_rejected_fraction",
        )


def _version(order: BatchOrder, settings: Settings) -> registry.Version:
    found = registry.versions(registry.find_model(order.model, settings), settings)
    version = registry.aliased(found, order.options.alias)
    if version is None:
        raise UserError(
            "DEPLOY_MODEL",
            f"model {order.model}: no version has the alias {order.options.alias}",
            "deploy one first, or give another alias",
        )
    return version


def _upload(rows: list[Asked], version: registry.Version, order: BatchOrder) -> tuple[str, str]:
    """The instances as the server takes them, at an address that names their contents."""
    lines = [json.dumps(_instance(row), ensure_ascii=False) + "\n" for row in rows]
    asked = [version.name, order.config.max_output_tokens, order.config.explain]
    digest = hashlib.sha256(json.dumps([asked, lines]).encode()).hexdigest()[:32]
    source = f"{order.settings.staging_bucket.rstrip('/')}/batch/{digest}/instances.jsonl"
    if objects.stat(source) is None:
        with tempfile.NamedTemporaryFile(prefix="pipestill-instances-") as file:
            file.write("".join(lines).encode())
            file.flush()
            objects.upload_file(file.name, source)
    return source, digest


def _instance(row: Asked) -> dict[str, Any]:
    """The server leaves alone what it does not know, so id and number come back."""
    name = "messages" if "messages" in row.fields else "input_text"
    return {"id": row.id, "source_row": row.source_row, name: row.fields[name]}


def _job(
    order: BatchOrder, settings: Settings, version: registry.Version, source: str, digest: str
) -> Any:
    """The job of this digest that runs or has succeeded, else a new one."""
    from google.cloud import aiplatform

    config, options = order.config, order.options
    with explained(settings, "look for a batch prediction job"):
        listed = aiplatform.BatchPredictionJob.list(filter=f'labels.{LABEL}="{digest}"')
    for job in listed:
        alive = job.state.name in SUCCEEDED or job.state.name not in ENDED
        if job.labels.get(LABEL) == digest and alive:
            return job
    with explained(settings, f"create a batch prediction job of {version.name}"):
        return aiplatform.BatchPredictionJob.submit(
            job_display_name=f"pipestill-batch-{digest[:8]}",
            model_name=version.name,
            instances_format="jsonl",
            predictions_format="jsonl",
            gcs_source=source,
            gcs_destination_prefix=source.rpartition("/")[0],
            model_parameters={
                "max_output_tokens": config.max_output_tokens,
                "explain": config.explain,
            },
            machine_type=options.machine_type,
            accelerator_type=options.serving_accelerator or None,
            accelerator_count=options.accelerator_count or None,
            starting_replica_count=options.min_replicas,
            max_replica_count=options.max_replicas,
            batch_size=config.batch_size,
            service_account=settings.service_account or None,
            encryption_spec_key_name=settings.encryption_spec_key_name or None,
            labels={**settings.labels, LABEL: digest},
        )


def _wait(job: Any, settings: Settings, say: Say) -> None:
    shown = ""
    while True:
        with explained(settings, f"look at job {job.name}"):
            state = job.state.name  # asks the platform
        if state != shown:
            say(f"batch job: {state.removeprefix('JOB_STATE_').lower()}")
        if state in SUCCEEDED:
            return
        if state in ENDED:
            text = " ".join(str(getattr(job.error, "message", "")).split())
            raise WorkError(
                "BATCH_JOB",
                f"job {job.resource_name} ended as {state}: {text or 'no reason given'}",
                "its log is in the console; run it again for a new job",
            )
        shown = state
        time.sleep(watch.POLL_S)


def _outputs(folder: str, rows: list[Asked]) -> tuple[list[dict[str, Any]], list[BadRow]]:
    """Answers in the order of the input, and the rows without one.

    Raises:
        WorkError: ``BATCH_INCOMPLETE``.
    """
    known = {row.source_row: row for row in rows}
    answers: dict[int, dict[str, Any]] = {}
    why: dict[int, str] = {}
    for number, line in _lines(folder):
        if number not in known or number in answers:
            again = "twice" if number in answers else "and was not asked"
            raise WorkError("BATCH_INCOMPLETE", f"{folder}: source row {number} is there {again}")
        given = line.get("prediction")
        if not isinstance(given, dict) or "output_text" not in given:
            why[number] = " ".join(str(line.get("error") or given or "no answer").split())[:300]
            continue
        row = known[number]
        answers[number] = {"id": row.id, "source_row": number, **row.fields, **_whole(given)}
    failed = [
        BadRow(
            file=row.file,
            line=row.line,
            field="(row)",
            reason="not_answered",
            source_row=number,
            detail=why.get(number, "the platform's output lacks it"),
        )
        for number, row in known.items()
        if number not in answers
    ]
    return [answers[number] for number in sorted(answers)], failed


def _whole(given: dict[str, Any]) -> dict[str, Any]:
    """Numbers come back as floats."""
    names = ("output_text", "rationale", "prompt_tokens", "output_tokens")
    found = {name: given[name] for name in names if name in given}
    return {
        name: int(value) if isinstance(value, float) else value for name, value in found.items()
    }


def _lines(folder: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and line of every answer and error that the job wrote."""
    files, _ = objects.list_folder(folder, deep=True)
    for item in files:
        if not re.search(r"prediction|error", item.uri.rpartition("/")[2]):
            continue
        for text in objects.read_bytes(item.uri).splitlines():
            line = json.loads(text)
            instance = line.get("instance")
            if isinstance(instance, dict) and "source_row" in instance:
                yield int(instance["source_row"]), line
