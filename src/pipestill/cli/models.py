"""`pipestill models`: the catalogue, or one model with its memory arithmetic."""

import argparse
import dataclasses
import json
from typing import Any

from pipestill.errors import UserError

_COLUMNS = (
    "model",
    "kind",
    "roles",
    "methods",
    "params",
    "context",
    "licence",
    "GB to tune",
    "GB to answer",
    "tunes on",
    "answers on",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `pipestill models`."""
    from pipestill.models.memory import METHODS

    parser.description = __doc__
    parser.add_argument(
        "name", nargs="?", help="a model of the catalogue, a hub name or a local folder"
    )
    parser.add_argument("--role", choices=("teacher", "student", "tunable"))
    parser.add_argument("--profile", help="only models that fit it (as teacher: that it can run)")
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="count memory for this method (default: sft, and inference for --role teacher)",
    )
    parser.add_argument(
        "--memory-gb", type=float, help="memory of this computer (cpu-local assumes 16 GB)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    """Prints the table or one entry; returns the exit code."""
    from pipestill.models.catalogue import describe, load_catalogue

    method = args.method or ("inference" if args.role == "teacher" else "sft")
    entries = [describe(args.name)] if args.name else list(load_catalogue())
    entries = [entry for entry in entries if not args.role or args.role in entry.roles]
    if args.profile:
        entries = _that_fit(entries, method, args)
    if args.json:
        print(
            json.dumps(
                [_facts(entry, method, args) for entry in entries], indent=2, ensure_ascii=False
            )
        )
    elif args.name:
        for entry in entries:
            _print_one(entry, args)
    else:
        _print_table(entries, method, args)
    return 0


def _that_fit(entries: list[Any], method: str, args: argparse.Namespace) -> list[Any]:
    from pipestill.models.catalogue import check_fits, fits
    from pipestill.models.memory import profile_named

    profile = profile_named(args.profile, args.memory_gb)
    if args.name:  # one named model that does not fit is a refusal with the arithmetic
        check_fits(args.name, method, args.profile, memory_gb=args.memory_gb)
        return entries
    return [entry for entry in entries if fits(entry, method, profile)]


def _facts(entry: Any, method: str, args: argparse.Namespace) -> dict[str, Any]:
    from pipestill.models.catalogue import need_on
    from pipestill.models.memory import PROFILES, profile_named

    profiles = {}
    for name in PROFILES:
        profile = profile_named(name, args.memory_gb)
        need = need_on(entry, method, profile)
        profiles[name] = need and {
            "fits": need.total <= profile.memory,
            "need_bytes": need.total,
            "memory_bytes": profile.memory,
            "arithmetic": need.arithmetic(),
        }
    return {**dataclasses.asdict(entry), "memory_method": method, "profiles": profiles}


def _print_table(entries: list[Any], method: str, args: argparse.Namespace) -> None:
    if not entries:
        raise UserError(
            "MODEL_NONE", "no model of the catalogue fits", "loosen --role or --profile"
        )
    tuning = "sft" if method == "inference" else method
    rows = [_COLUMNS, *(_row(entry, tuning, args) for entry in entries)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    print(
        f"\nGB in bf16 on one device, tuning by {tuning}; cpu counts in fp32. Activations and KV "
        "cache are estimates.\n~ rounded; * accept the licence on the hub first; ? the hub may ask "
        "you to. One model with its arithmetic: pipestill models NAME"
    )


def _row(entry: Any, tuning: str, args: argparse.Namespace) -> tuple[str, ...]:
    from pipestill.models.memory import count, memory_need

    tuning_gb = answer_gb = params = "-"
    if entry.parameters:
        params = ("~" if entry.approx else "") + count(entry.parameters)
        tuning_gb, answer_gb = (
            f"{memory_need(entry.parameters, kind, 'bf16', entry.architecture).total / 1e9:,.1f}"
            for kind in (tuning, "inference")
        )
    return (
        entry.reference,
        "enc-dec" if entry.architecture == "encoder-decoder" else "decoder",
        ",".join(entry.roles),
        ",".join(entry.methods),
        params,
        str(entry.context or "-"),
        entry.licence + {True: " *", False: "", None: " ?"}[entry.gated],
        tuning_gb,
        answer_gb,
        _places(entry, tuning, args),
        _places(entry, "inference", args),
    )


def _places(entry: Any, method: str, args: argparse.Namespace) -> str:
    """The profiles that `entry` fits, by the first word of their names."""
    from pipestill.models.catalogue import fits
    from pipestill.models.memory import PROFILES, profile_named

    if not entry.parameters:
        return "not known"
    fitting = [p for p in PROFILES if fits(entry, method, profile_named(p, args.memory_gb))]
    return " ".join(name.split("-")[0] for name in fitting) or "none"


def _print_one(entry: Any, args: argparse.Namespace) -> None:
    from pipestill.models.catalogue import need_on
    from pipestill.models.memory import METHODS, PROFILES, gigabytes, profile_named

    parameters = f"{entry.parameters:,}" if entry.parameters else "not known"
    gate = {True: ", accept it on the hub first", False: "", None: ", may ask for it on the hub"}
    facts = {
        "family": entry.family,
        "architecture": entry.architecture,
        "roles": ", ".join(entry.roles),
        "methods": ", ".join(entry.methods),
        "parameters": parameters + (" (rounded)" if entry.approx else ""),
        "context": f"{entry.context:,} tokens" if entry.context else "not known",
        "licence": entry.licence + ("" if entry.licence == "unknown" else gate[entry.gated]),
        "source": entry.source,
        "note": entry.note,
    }
    print(entry.reference)
    for name, value in facts.items():
        if value:
            print(f"  {name:<13}{value}")
    for name in [args.profile] if args.profile else PROFILES:
        profile = profile_named(name, args.memory_gb)
        print(f"  {name}: {gigabytes(profile.memory)} ({profile.description})")
        for method in [args.method] if args.method else METHODS:
            need = need_on(entry, method, profile)
            if need is None:
                print("    the size is not known, so nothing is checked")
                break
            mark = "✓" if need.total <= profile.memory else "✗"
            print(f"    {mark} {method:<10}{need.arithmetic()}")
