"""`pipestill serve`: a model folder behind Vertex AI's prediction contract."""

import argparse
import os

from pipestill.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pipestill serve`."""
    parser.description = __doc__
    parser.add_argument(
        "model_dir",
        nargs="?",
        help="folder from `deploy`, a pocket model or a hub name (default: AIP_STORAGE_URI)",
    )
    parser.add_argument("--port", type=int, help="default: AIP_HTTP_PORT or 8080; 0 = any free one")
    parser.add_argument(
        "--host", help="default: 127.0.0.1, and all interfaces where AIP_HTTP_PORT is set"
    )
    parser.add_argument(
        "--max-batch", type=int, help="prompts that are answered at once (default: 32)"
    )
    parser.add_argument(
        "--max-queue", type=int, help="requests that may wait; more get 429 (default: 64)"
    )
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="for one request; then 504 (default: 60)"
    )
    parser.add_argument(
        "--drain", type=float, metavar="SECONDS",
        help="for the running and waiting requests after SIGTERM (default: 25)",
    )  # fmt: skip
    parser.add_argument(
        "--log-requests", default="", metavar="DIR",
        help="log inputs and answers whose sender consents, for retraining (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--log-share", type=float, default=1.0, metavar="SHARE", help="share of them (default: 1)"
    )


def main(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C; returns the exit code."""
    from pipestill.serving.server import serve
    from pipestill.serving.settings import settings_from

    model = args.model_dir or os.environ.get("AIP_STORAGE_URI")
    if not model:
        raise UserError(
            "SERVE_NO_MODEL", "no model given", "pipestill serve MODEL_DIR, or set AIP_STORAGE_URI"
        )
    settings = settings_from(
        os.environ,
        host=args.host,
        port=args.port,
        max_batch=args.max_batch,
        max_queue=args.max_queue,
        timeout_s=args.timeout,
        drain_s=args.drain,
        log_requests=args.log_requests,
        log_share=args.log_share,
    )
    serve(model, settings)
    return 0
