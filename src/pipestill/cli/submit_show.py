"""What `pipestill submit` prints: the job, its parameters, its steps, and how to come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipestill.cloud.client import Settings
    from pipestill.cloud.submit import Order
    from pipestill.cloud.watch import Snapshot


def show_dry_run(orders: list[Order], parameters: Mapping[str, Any]) -> int:
    """What would be created; nothing is asked of the platform."""
    from pipestill.cloud.parameters import platform_parameters, read_template

    for order in orders:
        spec = read_template(order.template)
        print(f"would run  {order.pipeline} in {order.settings.location}/{order.profile}")
        made = platform_parameters(order.pipeline, parameters, spec, order.settings, upload=False)
        print_parameters(made)
    return 0


def print_submitted(job: Any, order: Order) -> None:
    """Job, link, place and parameters."""
    from pipestill.cloud.submit import console_link

    print(f"submitted  {job.name}")
    print(f"console    {console_link(job, order.settings)}")
    print(f"place      {order.settings.location}/{order.profile}, project {order.settings.project}")
    print_parameters(order.parameters)


def print_parameters(parameters: Mapping[str, Any]) -> None:
    """A line per parameter that was given; the others have the template's defaults."""
    for name, value in sorted(parameters.items()):
        print(f"parameter  {name} = {value}", flush=True)


def print_come_back(name: str, settings: Settings) -> None:
    """How to see the job again."""
    where = f"--project {settings.project} --region {settings.location}"
    print(f"watch      pipestill submit --watch {name} {where}", flush=True)


def wait_for(job: Any, settings: Settings) -> tuple[int, Snapshot | None]:
    """Shows a job of Vertex AI until it ends."""
    from pipestill.cloud.submit import console_link, look

    where = f"--project {settings.project} --region {settings.location}"
    code, last = show_until_done(
        lambda: look(job, settings),
        f"job {job.name}",
        f"pipestill submit --watch {job.name} {where}",
    )
    if code == 1:
        print(f"console    {console_link(job, settings)}")
        print(f"go on      pipestill submit --resume {job.name} {where} --wait", flush=True)
    return code, last


def show_until_done(
    look: Callable[[], Snapshot], what: str, again: str
) -> tuple[int, Snapshot | None]:
    """Exit code and last look: 0 succeeded, 1 failed, 130 interrupted (it goes on)."""
    from pipestill.cloud import watch

    try:
        last = watch.follow(look, poll_s=watch.POLL_S)
    except KeyboardInterrupt:
        print(f"\n{what} goes on; see it again with: {again}", flush=True)
        return 130, None
    for line in watch.closing(last):
        print(line)
    print(f"{what}: {last.state.lower()}", flush=True)
    return (0 if last.state == "SUCCEEDED" else 1), last


def failed_for_capacity(last: Snapshot | None) -> bool:
    """Whether the job ended because the place had no machine for a step."""
    from pipestill.cloud.refusals import is_capacity

    errors = [row.error for row in last.rows if row.state == "FAILED"] if last else []
    return bool(errors) and all(is_capacity(RuntimeError(error)) for error in errors)
