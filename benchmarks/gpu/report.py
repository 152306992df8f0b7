"""The short summary of all stages: at most ``MOST_LINES`` lines of Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from moleflow.training.report.markdown import markdown_table

__all__ = ["MOST_LINES", "summary"]

MOST_LINES = 60

MOST_FAILURES, MOST_ROWS = 5, 8
"""Failing tests and ablation rows that are shown; gpu.json has all."""

Result = Mapping[str, Any]


def summary(stages: Mapping[str, Result]) -> str:
    """The tables of all stages that have a record."""
    lines = ["# One GPU", ""]
    states = [f"{name}: {each['state']} ({each['seconds']:.0f} s)" for name, each in stages.items()]
    lines += ["; ".join(states) or "Nothing was measured."]
    lines += [f"{name}: {each['reason']}" for name, each in stages.items() if each["reason"]]
    lines += [f"{name} warned: {text}" for name, each in stages.items() for text in each.get("warnings", ())[:2]]
    parts = {
        "machine": _machine,
        "correctness": _correctness,
        "speed": _speed,
        "service": _service,
        "training_speed": _training_speed,
        "training": _training,
        "ablations": _ablations,
    }
    for name, part in parts.items():
        result = stages.get(name, {}).get("result")
        if not result:
            continue
        try:
            lines += ["", *part(result)]
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # a stage that ended in the middle
            lines += ["", f"{name}: not complete ({type(error).__name__}: {error}); see gpu.json"]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], "(more in gpu.json)"]
    return "\n".join(lines) + "\n"


def _number(value: Any, digits: int = 1, factor: float = 1) -> str:
    """A number, or a dash for what was not measured."""
    return f"{value * factor:.{digits}f}" if isinstance(value, int | float) else "–"


def _at(value: Any, *path: str) -> Any:
    """An entry of nested dictionaries; ``None`` if it is not there."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return markdown_table(headings, rows, right_from=1).splitlines()


def _machine(result: Result) -> list[str]:
    versions = ", ".join(f"{key} {result['versions'][key]}" for key in ("torch", "CUDA", "cuDNN", "triton", "Python"))
    ceilings = [
        _measured(result.get("copy_GB_per_s"), "GB/s copied (read + written)"),
        _measured(result.get("bf16_TFLOP_per_s"), "TFLOP/s in bf16"),
    ]
    return [f"{result['device']}; {versions}; {result['processor']}. Ceilings: {', '.join(ceilings)}."]


def _measured(value: Any, unit: str) -> str:
    if isinstance(value, float):
        return f"{value:.0f} {unit}"
    return f"{unit}: not measured: {_at(value, 'not_measured') or _at(value, 'error')}"


def _correctness(result: Result) -> list[str]:
    if "passed" not in result:
        return [f"Tests: {result.get('not_measured', 'no report')}."]
    lines = [f"Tests: {result['passed']} passed, {result['failed']} failed, {result['skipped']} skipped."]
    failures = list(result["failures"].items())
    return lines + [f"- {name}: {message[:150]}" for name, message in failures[:MOST_FAILURES]]


def _speed(result: Result) -> list[str]:
    headings = [
        "ms per batch",
        "one product",
        "mixed",
        "/ one",
        "routed",
        "images/s",
        "events: backbone + maps",
        "kernels",
        "host",
        "bound",
        "bound / one",
        "peak GB",
    ]
    rows, errors = [], []
    for name, preset in result.items():
        for batch, found in preset.get("batches", {}).items():
            one, mixed = _at(found, "one", "ms"), _at(found, "mixed", "ms")
            subject = "mixed" if mixed else "one"
            parts = [_at(found, subject, "device", key) for key in ("embed_and_route_ms", "maps_ms")]
            inside, bound = _at(found, subject, "device", "ms"), _at(found, "bound", "bound_ms")
            peak = _at(found, subject, "peak_bytes")
            rows.append(
                [
                    f"{name}, {batch}",
                    _number(one, 2),
                    _number(mixed, 2),
                    _number(mixed / one, 2) if mixed and one else "–",
                    _number(_at(found, "routed", "ms"), 2),
                    _number(_at(found, subject, "images_per_second"), 0),
                    " + ".join(_number(part, 2) for part in parts),
                    _number(_at(found, subject, "kernels", "kernel_ms"), 2),
                    _number(found[subject]["ms"] - inside, 2) if inside else "–",
                    _number(bound, 2),
                    _number(bound / one, 2) if bound and one else "–",
                    _number(peak, 2, 1e-9),
                ]
            )
            errors += [
                f"{name}, {batch}, {key}: {_at(each, 'error')}" for key, each in found.items() if _at(each, "error")
            ]
    return [*_table(headings, rows), *errors[:3]]


def _service(result: Result) -> list[str]:
    rows = []
    for setting in ("default", "wide", "several"):
        for key in result.get(setting, {}):
            kind, _, rest = key.partition(", ")
            concurrency, _, form = rest.partition(", ")
            if form != "none":
                continue
            plain, whole = result[setting][key], _at(result[setting], f"{kind}, {concurrency}, default")
            busy = _at(plain, "busy_processors") or {}
            rows.append(
                [
                    f"{setting}: {kind}, {concurrency}",
                    *(_number(_at(plain, *path), 1) for path in (("images_per_second",), ("latency_ms", "p50"))),
                    _number(_at(plain, "latency_ms", "p99"), 0),
                    _number(_at(plain, "of_ceiling"), 2),
                    _number(_at(whole, "images_per_second"), 1),
                    f"{_number(_at(whole, 'latency_ms', 'p50'), 0)} / {_number(_at(whole, 'latency_ms', 'p99'), 0)}",
                    " / ".join(
                        _number(_at(plain, f"{name}_ms", "p50"), 1)
                        for name in ("decode", "queue", "inference", "encode")
                    ),
                    " + ".join(map(_number, (busy.get("main"), sum(busy.get("others", [])), busy.get("load")))),
                ]
            )
    headings = [
        "service",
        "images/s, map=none",
        "p50",
        "p99 ms",
        "/ decode ceiling",
        "with map",
        "p50 / p99",
        "decode / queue / model / encode p50",
        "busy: main + others + load",
    ]
    ceiling = ", ".join(f"{kind} {_number(rate, 0)}" for kind, rate in result["decode_ceiling"].items())
    note = f"Decode ceiling of {result['processors']} processors, images/s: {ceiling}. Load: {result['generator']}."
    errors = [
        f"{name}: {result[name]['error'][-150:]}"
        for name in ("default", "wide", "several")
        if _at(result, name, "error")
    ]
    return [*_table(headings, rows), note, *errors]


def _training_speed(result: Result) -> list[str]:
    rows = []
    for name, preset in result.items():
        cells = [
            _number(_at(preset, *path), digits)
            for kind in ("first", "later")
            for path, digits in (((f"{kind}, epochs", "images_per_second"), 0), ((kind, "ms"), 1))
        ]
        embedding, peak = _at(preset, "embedding", "images_per_second"), _at(preset, "first", "peak_bytes")
        rows.append([f"{name}, {preset.get('batch')}", _number(embedding, 0), *cells, _number(peak, 2, 1e-9)])
    headings = ["training", "embed images/s", "first: images/s", "ms/step", "later: images/s", "ms/step", "peak GB"]
    return _table(headings, rows)


def _training(result: Result) -> list[str]:
    rows, errors = [], []
    for name in ("fast", "main"):
        preset = result.get(name, {})
        if reason := preset.get("error") or preset.get("not_measured"):
            errors.append(f"{name}: {reason}")
        found = _at(preset, "evaluation", "products") or {}
        entries = [(product, found.get(product), learned) for product, learned in preset.get("learned", {}).items()]
        mean = _at(preset, "evaluation", "mean")
        for product, figures, learned in [*entries, ("mean", mean, None)] if entries else []:
            keys = ("image_auroc", "pixel_auroc", "pixel_ap", "aupro", "routing")
            percent = [_number(_at(figures, key), 2, 100) for key in keys]
            took = [_number(_at(learned, "seconds"), 0), _number(_at(learned, "images_per_second"), 0)]
            rows.append([f"{name}: {product}", *percent, *took])
    headings = ["learned", "image AUROC", "pixel AUROC", "pixel AP", "AUPRO", "routed right", "seconds", "images/s"]
    return [*(_table(headings, rows) if rows else []), *errors]


def _ablations(result: Result) -> list[str]:
    done, keys = result["rows"], ("image_auroc", "pixel_auroc", "pixel_ap", "routing")
    rows = [
        [
            f"{each['study']}: {each['row']}",
            *(_number(each["mean"][key], 2, 100) for key in keys),
            _number(each["train_seconds"], 0),
        ]
        for each in done[:MOST_ROWS]
    ]
    table = _table(["ablation", "image AUROC", "pixel AUROC", "pixel AP", "routed right", "train s"], rows)
    return [f"{len(done)} of {result['total']} rows of the ablation study.", "", *(table if rows else [])]
