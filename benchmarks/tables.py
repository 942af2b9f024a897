"""Writes the tables of the documentation from the committed results of the benchmarks.

    python benchmarks/tables.py [--check]

A page says `<!-- table: NAME -->` where a table begins and `<!-- end of table -->` where it ends; what stands between
is replaced. With --check nothing is written, and the exit code is 1 if a page is not what the results say.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ntk_robust._core import Figure

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "docs" / "kernels.md", ROOT / "docs" / "empirical_kernels.md", ROOT / "docs" / "attacks.md"]
PAGES += [ROOT / "docs" / "certificates.md", ROOT / "docs" / "theory" / "deng2020.md"]
PAGES += [ROOT / "docs" / "training.md", ROOT / "docs" / "studies.md"]
PAGES += [ROOT / "docs" / "expressiveness.md"]
PAGES += [ROOT / "docs" / "theory" / "gao2019.md", ROOT / "docs" / "theory" / "shi2024.md"]
STUDIED = ("mnist", "cifar10")
_PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def main() -> None:
    """Rewrites every page, or says which ones differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page differs")
    check = parser.parse_args().check
    stale = [page for page in PAGES if rendered(page.read_text()) != page.read_text()]
    for page in stale:
        print(f"{'differs from the results' if check else 'written'}: {page.relative_to(ROOT)}")
        if not check:
            page.write_text(rendered(page.read_text()))
    if not check:
        draw_figures()
    sys.exit(1 if check and stale else 0)


def rendered(text: str) -> str:
    """The page with its tables made anew."""
    return _PLACE.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n\n{match[3]}", text)


def _results(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / "cpu" / f"{name}.json").read_text())


def _markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _with_bar(value: float, bar: float | None, met: bool) -> str:
    return f"{value:.1f}" if bar is None else f"{value:.1f} ({'meets' if met else 'misses'} {bar:g})"


def kernel_speed() -> str:
    """Times beside neural-tangents, with the bar and the ceiling."""
    columns = ["dtype", "hidden layers", "neural-tangents / ours", "into a donated matrix", "ceiling on this machine"]
    columns += ["ours / half GEMM", "donated / half GEMM"]
    rows = [
        [
            row["dtype"],
            str(row["depth"]),
            _with_bar(row["neural_tangents_over_ours_cpu"], row["bar"], row["bar_met"]),
            f"{row['neural_tangents_over_into_out_cpu']:.1f}",
            f"{row['neural_tangents_over_half_gemm_cpu']:.1f}",
            f"{row['ours_over_half_gemm_cpu']:.2f}",
            f"{row['into_out_over_half_gemm_cpu']:.2f}",
        ]
        for row in _results("bench_kernels")["rows"]
    ]
    return _markdown(columns, rows)


def kernel_accuracy() -> str:
    """Largest errors against 50 digits, of derivatives too where they were measured."""
    record = _results("bench_kernels")["accuracy"]
    derivatives = ["derivative"] if any("gradient_error" in row for row in record) else []
    columns = ["activation", "hidden layers", "b_std", "dtype", "kernel of a pair", *derivatives]
    columns += ["squared distance", "matrix"]
    rows = [
        [
            f"`{row['activation']}`",
            str(row["depth"]),
            f"{row['b_std']:g}",
            row["dtype"],
            f"{row['ntk_error']:.0e}" + ("" if row["ntk_bar_met"] else " (misses)"),
            *(f"{row['gradient_error']:.0e}" if "gradient_error" in row else "" for _ in derivatives),
            f"{row['distance_squared_error']:.0e}" + ("" if row["distance_squared_bar_met"] else " (misses)"),
            f"{row['gram_error']:.0e}",
        ]
        for row in record
    ]
    return _markdown(columns, rows)


def kernel_systems() -> str:
    """Conjugate gradients with the matrix on disk."""
    columns = ["rows", "matrix, CPU s", "preconditioner", "conjugate gradients", "products", "largest residual"]
    columns += ["peak memory, GB", "test accuracy"]
    rows = [
        [
            f"{row['rows']:,}",
            f"{row['matrix_cpu_seconds']:.0f}",
            f"{row['setup_cpu_seconds']:.0f}",
            f"{row['cpu_seconds']:.0f}",
            str(row["products"]),
            f"{row['largest_residual']:.1e}",
            f"{row['peak_resident_bytes'] / 1e9:.2f}",
            f"{100 * row['test_accuracy']:.2f} %",
        ]
        for row in _results("bench_gram")["cg"]
    ]
    return _markdown(columns, rows)


def empirical_speed() -> str:
    """The layerwise kernel beside the fastest implementation of neural-tangents."""
    record = _results("bench_empirical")["networks"]
    columns = ["width", "hidden layers", "outputs", "neural-tangents / ours", "minima", "compile time, the same"]
    columns += ["GFLOP, neural-tangents", "ours", "ours per CPU second", "memory / (activations + deltas + matrix)"]
    rows = [
        [
            str(row["width"]),
            str(row["hidden_layers"]),
            str(row["outputs"]),
            f"{row['ratio_cpu']:.2f}",
            f"{row['ratio_cpu_minima']:.2f}",
            f"{row['compile_ratio_cpu']:.2f}",
            f"{row['peer_gflops']:.1f}",
            f"{row['ours_gflops']:.1f}",
            f"{row['ours_gflops_per_cpu_second']:.0f}",
            f"{row['ours_bytes'] / row['bound_bytes']:.2f}",
        ]
        for row in record["rows"]
    ]
    return _markdown(columns, rows) + f"\n\nGeometric mean of the ratios: {record['geometric_mean_ratio_cpu']:.2f}."


def empirical_choices() -> str:
    """What is taken for networks without a layerwise way."""
    columns = ["network", "taken", "fastest", "time of the taken / fastest", "slowest / taken"]
    rows = [
        [
            row["network"],
            row["chosen"],
            row["fastest"],
            f"{row['chosen_over_fastest']:.2f}",
            f"{row['slowest_over_chosen']:.1f}",
        ]
        for row in _results("bench_empirical")["choices"]["rows"]
    ]
    return _markdown(columns, rows)


def empirical_torch() -> str:
    """The layerwise kernel beside torch.func, if it was there."""
    record = _results("bench_empirical").get("torch", {"absent": "The comparison with torch.func was not made."})
    if "absent" in record:
        return record["absent"]
    columns = ["examples", "width", "hidden layers", "outputs", "Jacobian, GiB", "torch.func / ours"]
    rows = [
        [
            *(str(row[key]) for key in ("rows", "width", "hidden_layers", "outputs")),
            f"{row['jacobian_gib']:.1f}",
            f"{row['ratio_cpu']:.0f}",
        ]
        for row in record["rows"]
    ]
    return _markdown(columns, rows)


def attack_parity(section: str = "parity") -> str:
    """Accuracies of reference networks under ours and under the peers' attacks, and what the ensemble costs."""
    attacks = ("apgd-ce", "apgd-t", "fab-t", "square", "auto-attack")
    rows = []
    for name, row in _results("bench_attacks")[section]["networks"].items():
        ours, theirs = row["ntk_robust"], row["torchattacks"]
        cells = [f"{ours[attack]:.2f} / {theirs[attack]:.2f}" for attack in attacks]
        pgd = f"{ours['pgd']:.2f} / {row['foolbox']['pgd']:.2f}"
        seconds = f"{row['cpu_s']['auto-attack']:.0f} / {row['peers_cpu_s']['auto-attack']:.0f}"
        title = name.replace("_", " ")
        rows.append([title, f"{row['epsilon']:.3g}", f"{row['natural_accuracy']:.2f}", *cells, pgd, seconds])
    titles = [f"`{attack}`" for attack in attacks]
    return _markdown(["network", "ε", "natural", *titles, "PGD-40", "`auto-attack`, CPU s"], rows)


def attack_speed() -> str:
    """PGD on one MLP, beside the peers."""
    speed = _results("bench_attacks")["speed"]
    ours = speed["rows"][0]
    rows = [
        [
            row["peer"],
            f"{row['cpu_s']:.2f}",
            f"{row['cpu_s'] / ours['cpu_s']:.2f}",
            f"{row['cpu_s_min'] / ours['cpu_s_min']:.2f}",
            f"{row['mean_loss']:.3f}",
        ]
        for row in speed["rows"]
    ]
    return _markdown(["peer", "CPU seconds", "peer / ours", "the same, minima", "mean loss reached"], rows)


def attack_auto() -> str:
    """The whole ensemble, beside that of torchattacks."""
    rows = _results("bench_attacks")["auto"]["rows"]
    cells = [
        [
            row["peer"],
            f"{row['cpu_s']:.0f}",
            f"{row['cpu_s'] / rows[0]['cpu_s']:.1f}",
            f"{row['adversarial_accuracy']:.3f}",
        ]
        for row in rows
    ]
    return _markdown(["peer", "CPU seconds", "peer / ours", "accuracy left"], cells)


def attack_kernel() -> str:
    """PGD on a kernel regressor, and what closed-form gradients save."""
    row = _results("bench_attacks")["kernel"]
    columns = ["quantity", "value"]
    rows = [
        ["training points", str(row["num_train"])],
        [f"PGD-10 and audit on {row['num_test']} MNIST test points, CPU seconds", f"{row['second_call_cpu_s']:.0f}"],
        ["the first call, with compilation", f"{row['first_call_cpu_s']:.0f}"],
        ["accuracy, natural and attacked", f"{row['natural_accuracy']:.3f}, {row['adversarial_accuracy']:.3f}"],
        ["CPU ms a gradient in closed form", f"{row['closed_gradient_cpu_ms_a_point']:.1f}"],
        ["CPU ms a gradient by automatic differentiation", f"{row['automatic_gradient_cpu_ms_a_point']:.1f}"],
        ["ratio", f"{row['automatic_over_closed']:.0f}"],
    ]
    return _markdown(columns, rows)


_BOUNDS = {"interval": "`IntervalBounds`", "zonotope": "`Zonotope`", "crown": "`Crown`"}
_BOUNDS |= {"alpha_crown": "`AlphaCrown`, 20 steps"}


def certified_accuracies() -> str:
    """What PGD leaves and what each bound certifies, for networks."""
    rows = [
        [
            *(row[name] for name in ("network", "training", "norm")),
            f"{row['epsilon']:g}",
            *(f"{row[name]:.3g}" for name in ("natural_accuracy", "adversarial_accuracy")),
            *(f"{row[name]:.3g}" if name in row else "" for name in _BOUNDS),
        ]
        for row in _results("bench_certify")["rows"]
        if "crown" in row
    ]
    return _markdown(["network", "training", "norm", "ε", "natural", "PGD-40", *_BOUNDS.values()], rows)


def certified_seconds() -> str:
    """What each bound costs for one example of each network: the least at any radius."""
    fastest: dict[tuple[str, str], dict[str, float]] = {}
    for row in _results("bench_certify")["rows"]:
        for name in _BOUNDS:
            if name in row:
                times = fastest.setdefault((row["network"], row["norm"]), {})
                seconds = row[f"{name}_cpu_s"] / row["examples"]
                times[name] = min(seconds, times.get(name, seconds))
    rows = [
        [*network, *(f"{float(f'{1e3 * times[name]:.2g}'):g}" if name in times else "" for name in _BOUNDS)]
        for network, times in fastest.items()
    ]
    return _markdown(["network", "norm", *_BOUNDS.values()], rows)


def certified_kernel() -> str:
    """What an attack leaves and what both certificates prove of an NTK regression."""
    rows = [
        [f"{row['epsilon']:g}", *(f"{row[name]:.3g}" for name in ("adversarial_accuracy", "rkhs_norm", "local"))]
        for row in _results("bench_certify")["rows"]
        if "rkhs_norm" in row
    ]
    titles = ["adversarial (PGD-10)", "certified by norm (`rkhs_bounds`)", "by gradient (`local_kernel_bounds`)"]
    return _markdown(["ε", *titles], rows)


def training_speed() -> str:
    """Steps of adversarial training beside the peers."""
    columns = ["network", "optimizer", "peer", "CPU ms per step", "wall ms per step", "CPU time over `fit`'s"]
    rows = [
        [
            row["case"],
            row["optimizer"],
            row["peer"],
            f"{row['cpu_ms_per_step']:.2f}",
            f"{row['wall_ms_per_step']:.2f}",
            f"{row['cpu_over_fit']:.2f}",
        ]
        for path in sorted((ROOT / "benchmarks" / "results" / "cpu").glob("bench_training*.json"))
        for row in _results(path.stem)["rows"]
    ]
    return _markdown(columns, rows)


def kill_matrix() -> str:
    """Training runs killed and resumed."""
    columns = ["run", "killed by signal 9 after steps", "went on, not anew", "bits of the uninterrupted run"]
    rows = [
        [
            row["run"],
            ", ".join(map(str, row["killed_after_steps"])),
            "yes" if row["went_on"] else "**no**",
            "the same" if row["same_bits"] else "**others**",
        ]
        for row in _results("bench_resume")["rows"]
    ]
    return _markdown(columns, rows)


def _study(data: str, name: str) -> dict:
    return _results(f"studies_{data}")[name]["study"]


def _study_rows(name: str, table: str) -> list[dict]:
    """Rows of a study's table, by column, of all data sets."""
    found = []
    for data in STUDIED:
        tables = {entry["name"]: entry for entry in _study(data, name)["tables"]}
        rows = (dict(zip(tables[table]["columns"], row, strict=True)) for row in tables[table]["rows"])
        found += [{"data": data} | row for row in rows]
    return found


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _study_table(name: str, columns: dict[str, str], table: str = "runs", data: str | None = None) -> str:
    """Some columns of a study's table; `columns` are what they are called on the page, by their names in the study."""
    rows = [row for row in _study_rows(name, table) if data in (None, row["data"])]
    shown = columns if data else {"data": "data"} | columns
    return _markdown(list(shown.values()), [[_number(row[column]) for column in shown] for row in rows])


def displacement_slopes() -> str:
    """Exponents of the width."""
    columns = {"quantity": "quantity", "setting": "training", "slope": "exponent", "lower": "from", "upper": "to"}
    columns |= {"largest departure from the line": "largest departure from the line"}
    return _study_table("training_displacement", columns, "slopes")


def mnist_displacement() -> str:
    """Means behind the exponents."""
    names = ("training", "width", "displacement", "kernel drift", "surrogate loss")
    return _study_table("training_displacement", {name: name for name in names}, data="mnist")


def lazy_exits() -> str:
    """When training leaves the lazy regime."""
    columns = {
        "training": "training",
        "output scale α": "α",
        "median step": "median step",
        "runs that left": "of 3 left",
    }
    return _study_table("lazy_training", columns, "exits")


def mnist_lazy() -> str:
    """Where runs with scaled outputs ended."""
    names = ("training", "output scale α", "displacement", "kernel drift", "linearization error", "surrogate loss")
    return _study_table("lazy_training", {name: name for name in names}, data="mnist")


def radius() -> str:
    """Movement against the radius of the perturbations."""
    names = (
        "displacement",
        "path length",
        "kernel drift",
        "surrogate loss",
        "natural accuracy",
        "adversarial accuracy",
    )
    columns = {"l∞ radius ε (units of the pixels)": "ε"} | {name: name for name in names}
    return _study_table("perturbation_radius", columns)


def projection() -> str:
    """Movement and loss against the radius of the weights."""
    names = ("projected", "displacement", "kernel drift", "surrogate loss", "adversarial accuracy")
    columns = {"training": "training", "radius r of each layer's ball (weight units)": "r"} | {
        name: name for name in names
    }
    return _study_table("projection_radius", columns)


def robust_norms() -> str:
    """Norms of robust interpolants against the radius."""
    columns = ["data, set", "ε / largest ε", "ε", "norm, lower bound", "attained", "audited", "upper bound", "points"]
    rows = [
        [
            _title(section),
            f"{row['share']:g}",
            f"{row['epsilon']:.3g}",
            f"{row['norm_lower']:.2f}",
            _or_none(row["norm_attained"]),
            _or_none(row["norm_audited"]),
            _or_none(row["norm_upper"]),
            str(row["constraints"]),
        ]
        for section, record in _norm_sections()
        for row in record["rows"]
    ]
    costs = ", ".join(
        f"{_title(section)}: {record['examples']} examples, {record['curve_cpu_s']:.0f} s, ε up to"
        f" {record['largest_epsilon']:.3g}"
        for section, record in _norm_sections()
    )
    return _markdown(columns, rows) + f"\n\nCPU time of a whole curve, and the largest compatible ε: {costs}."


def robust_norms_figure() -> "Figure":
    """The same as curves."""
    from ntk_robust._core import Figure, Series

    series = []
    for section, record in _norm_sections():
        rows = [row for row in record["rows"] if row["norm_audited"] is not None]
        lower, upper = ([row[key] for row in rows] for key in ("norm_lower", "norm_audited"))
        middle = [row["norm_attained"] or row["norm_audited"] for row in rows]
        series.append(Series(_title(section), [row["share"] for row in rows], middle, lower, upper))
    return Figure(
        name="robust_norms",
        title="Smallest norm of a robust interpolant",
        x_label="radius over the largest one at which unlike sets do not meet",
        y_label="norm in the kernel's space",
        series=tuple(series),
        y_scale="log",
        caption="Bands from the certified lower bound to the norm that an independent attack leaves.",
    )


def best_errors() -> str:
    """Smallest robust losses against the radius, of the infinitely wide kernel and of finite networks."""
    rows = [
        [name, which, *(_between(row) for row in found["rows"]), f"{found['cpu_s']:.0f}"]
        for (name, which), found in _curves().items()
    ]
    radii = [f"R = {row['radius']:g}" for row in next(iter(_curves().values()))["rows"]]
    return _markdown(["sets", "kernel", *radii, "CPU s"], rows)


def _curves() -> dict[tuple[str, str], dict]:
    found = _results("bench_expressiveness")["curves"].items()
    return {(name.split(": ")[0], name.split(": ")[1]): curve for name, curve in found}


def _between(row: dict) -> str:
    """The certified bounds, or the lower one and what a search left where the upper one does not close."""
    upper = row["error_upper"]
    closed = upper is not None and upper - row["error_lower"] <= 0.03 * upper
    return f"{row['error_lower']:.3f}–{upper if closed else row['error_attained']:.3f}" + ("" if closed else " ?")


def best_errors_figure() -> "Figure":
    """The same as curves."""
    from ntk_robust._core import Figure, Series

    series = []
    for (name, which), found in _curves().items():
        rows = found["rows"]
        lower, attained = ([row[key] for row in rows] for key in ("error_lower", "error_attained"))
        label = f"{name.split(',')[0].removesuffix(' of a circle')}, {which}"
        style = "line" if which == "infinite" else "points" if which == "m = 4096" else "dashed"
        series.append(Series(label, [row["radius"] for row in rows], attained, lower, attained, style))
    return Figure(
        name="best_errors",
        title="Smallest robust loss within a ball",
        x_label="radius R",
        y_label="smallest mean worst-case error",
        series=tuple(series),
        caption="Bands from the certified lower bound to the loss that was reached.",
    )


def grid_fits() -> str:
    """Uniform approximation on grids of growing size."""
    columns = ["grid points", "R", "error, lower bound", "upper bound", "points in the last program", "rounds", "CPU s"]
    return _fits("grids", columns, lambda row: [f"{row['points']:,}", f"{row['radius']:g}"])


def surface_fits() -> str:
    """Errors certified on whole surfaces."""
    columns = ["surface and kernel", "R", "error, lower bound", "upper bound", "points in the last program", "rounds"]
    return _fits("surfaces", [*columns, "CPU s"], lambda row: [row["case"], f"{row['radius']:g}"])


def _fits(section: str, columns: list[str], first: Callable[[dict], list[str]]) -> str:
    rows = [
        [
            *first(row),
            f"{row['error_lower']:.4f}",
            f"{row['error_upper']:.4f}",
            str(row["constraints"]),
            str(row["rounds"]),
            f"{row['cpu_s']:.1f}",
        ]
        for row in _results("bench_expressiveness")[section]
    ]
    return _markdown(columns, rows)


def _norm_sections() -> list[tuple[str, dict]]:
    record = _results("bench_expressiveness")
    return [(name, part) for name, part in record.items() if name.startswith("norms-")]


def _title(section: str) -> str:
    _, data, ball = section.split("-")
    return f"{'MNIST' if data == 'mnist' else data}, {'l∞' if ball == 'linf' else 'l2'}"


def _or_none(value: float | None) -> str:
    return "—" if value is None else f"{value:.2f}"


def gao2019_verdicts() -> str:
    """One row for each check."""
    return _verdicts("gao2019", "bench_checks")


def shi2024_verdicts() -> str:
    """One row for each check."""
    return _verdicts("shi2024", "bench_checks_shi2024")


def _verdicts(paper: str, results: str) -> str:
    record = _results(results)
    quick, full = (
        {name: row for name, row in record.get(profile, {}).items() if name.startswith(paper)}
        for profile in ("quick", "full")
    )
    columns = ["check", "claims", "verdict", "control", "CPU s", "full: claims", "verdict", "control", "CPU s"]
    rows = []
    for name in sorted({*quick, *full}):
        rows.append([f"`{name}`", *_verdict_cells(quick.get(name)), *_verdict_cells(full.get(name))])
    total = sum(row["cpu_s"] for row in quick.values())
    return _markdown(columns, rows) + f"\n\nQuick size in all, a process for each check: {total:.0f} CPU s."


def _verdict_cells(row: dict | None) -> list[str]:
    if row is None:
        return ["not run", "", "", ""]
    return [str(len(row["claims"])), row["verdict"], row["control_verdict"], f"{row['cpu_s']:.0f}"]


def gao2019_claims() -> str:
    """Claims in quick size; of those that differ only after the first comma, the tightest."""
    return _claims("gao2019", "bench_checks")


def shi2024_claims() -> str:
    """Claims in quick size; of those that differ only after the first comma, the tightest."""
    return _claims("shi2024", "bench_checks_shi2024")


def _claims(paper: str, results: str) -> str:
    columns = ["check", "claim", "of", "verdict", "measured", "", "predicted", "uncertainty", "tightness"]
    columns += ["control violates it"]
    rows = []
    for name, row in _results(results)["quick"].items():
        if not name.startswith(paper):
            continue
        groups: dict[str, list[dict]] = {}
        for claim in row["claims"]:
            groups.setdefault(claim["name"].split(",")[0], []).append(claim)
        broken = {title.split(",")[0] for title in row["violated_controls"]}
        for title, claims in groups.items():
            shown = max(claims, key=lambda claim: -1.0 if claim["tightness"] is None else claim["tightness"])
            tight = "" if shown["tightness"] is None else f"{shown['tightness']:.2g}"
            verdicts = sorted({claim["verdict"] for claim in claims})
            role = " (hypothesis)" if shown["role"] == "hypothesis" else ""
            rows.append(
                [
                    f"`{name.removeprefix(paper + '_')}`",
                    title.replace("|", "\\|") + role,
                    str(len(claims)),
                    ", ".join(verdicts),
                    f"{shown['measured']:.4g}",
                    shown["relation"],
                    _predicted(shown["predicted"]),
                    f"{shown['uncertainty']:.1g}",
                    tight,
                    "yes" if title in broken else "",
                ]
            )
    return _markdown(columns, rows)


def _predicted(value: float | list[float]) -> str:
    return f"{value[0]:.4g} to {value[1]:.4g}" if isinstance(value, list) else f"{value:.4g}"


def robust_overfitting() -> str:
    """Last, early-stopped and averaged weights after adversarial training past its best."""
    names = ("weights", "steps", "training adversarial accuracy", "test adversarial accuracy", "test natural accuracy")
    shown = {"wrong labels": "wrong labels"} | {name: name for name in names}
    rows = _study_rows("robust_overfitting", "rules")
    cells = [["" if row[name] is None else _number(row[name]) for name in ("data", *shown)] for row in rows]
    return _markdown(["data", *shown], cells)


def deng_verdicts() -> str:
    """What the checks of Deng et al. found, in both profiles."""
    columns = ["check", "profile", "verdict", "control", "claims", "CPU s", "tightest bound", "tightness"]
    found, rows = _results("bench_checks_deng2020"), []
    for profile in ("quick", "full"):
        for name, check in found.get(profile, {}).items():
            # Exact counts and limits that are attained have a tightness too, but are no bounds to speak of.
            bounds = [
                claim
                for claim in check["claims"]
                if claim["role"] == "conclusion" and claim["tightness"] and claim["uncertainty"] > 0
            ]
            best = max(
                (claim for claim in bounds if claim["tightness"] <= 1), key=lambda c: c["tightness"], default=None
            )
            rows.append(
                [
                    f"`{name}`",
                    profile,
                    check["verdict"],
                    check["control_verdict"],
                    str(len(check["claims"])),
                    f"{check['cpu_s']:.0f}",
                    best["name"].replace("|", "‖") if best else "",
                    f"{best['tightness']:.3g}" if best else "",
                ]
            )
    return _markdown(columns, rows)


def _landscape_table(name: str, table: str, columns: dict[str, str]) -> str:
    """Some columns of a table of a study of landscapes, of the data sets that it was run on."""
    rows = []
    for data in ("digits", "mnist"):
        if name in _results(f"studies_{data}"):
            found = next(entry for entry in _study(data, name)["tables"] if entry["name"] == table)
            for row in found["rows"]:
                named = dict(zip(found["columns"], row, strict=True))
                rows.append([data, *(_number(named[column]) for column in columns)])
    return _markdown(["data", *columns.values()], rows)


def ascents() -> str:
    """Ascents at stages of adversarial training."""
    columns = {
        "training steps": "training steps",
        "largest loss found, mean": "largest loss",
        "iterations to the sphere": "to the sphere",
        "iterations to a residual of 1e-06": "to a residual of 1e-6",
        "predicted factor per iteration at the end": "factor per iteration",
        "smallest margin κ": "smallest κ",
        "certified global maxima": "certified global",
        "contraction ρ": "ρ",
    }
    return _landscape_table("ascent_convergence", "ascents", columns)


def input_scale_regimes() -> str:
    """Neighboring input scales compared, for each protocol of the learning rate."""
    columns = {
        "activation": "activation",
        "learning rate": "learning rate",
        "s": "s",
        "next s": "next s",
        "log ratio of the last losses": "log ratio",
        "± (95 %)": "±",
        "smaller loss at": "smaller loss at",
    }
    return _landscape_table("input_scale", "regimes", columns)


def landscapes() -> str:
    """What ascents from many starts find at several input scales."""
    columns = {
        "input scale s": "s",
        "ρ_0 = ε|H|/|g|": "ρ₀",
        "margin κ of the best": "κ of the best",
        "distinct limits": "distinct limits",
        "share of ascents that arrived": "arrived",
        "share of them at the best": "of them at the best",
        "share at the second": "at the second",
    }
    return _landscape_table("landscape_slices", "landscapes", columns)


def draw_figures() -> None:
    """The figures of the studies that pages show, as SVG files beside them."""
    from ntk_robust._core import Contours, Figure, Series
    from ntk_robust.report import figure_svg

    for page in PAGES:
        for file in re.findall(r"\(figures/(\w+\.svg)\)", page.read_text()):
            path = page.parent / "figures" / file
            path.parent.mkdir(exist_ok=True)
            if file in FIGURES:
                path.write_text(figure_svg(FIGURES[file]()) + "\n")
                continue
            data = next(data for data in ("digits", *STUDIED) if file.startswith(data))
            name = next(name for name in _results(f"studies_{data}") if file.startswith(f"{data}_{name}_"))
            figure = next(f for f in _study(data, name)["figures"] if file == f"{data}_{name}_{f['name']}.svg")
            behind = Contours(**figure["contours"]) if figure.get("contours") else None
            parts = {"series": [Series(**series) for series in figure["series"]], "contours": behind}
            drawn = Figure(**(figure | parts))
            path.write_text(figure_svg(drawn) + "\n")


TABLES = {
    "attack_parity": attack_parity,
    "attack_parity_l2": partial(attack_parity, "parity_l2"),
    "attack_speed": attack_speed,
    "attack_auto": attack_auto,
    "attack_kernel": attack_kernel,
    "certified_accuracies": certified_accuracies,
    "certified_seconds": certified_seconds,
    "certified_kernel": certified_kernel,
    "kernel_speed": kernel_speed,
    "kernel_accuracy": kernel_accuracy,
    "kernel_systems": kernel_systems,
    "empirical_speed": empirical_speed,
    "empirical_choices": empirical_choices,
    "empirical_torch": empirical_torch,
    "training_speed": training_speed,
    "kill_matrix": kill_matrix,
    "displacement_slopes": displacement_slopes,
    "mnist_displacement": mnist_displacement,
    "lazy_exits": lazy_exits,
    "mnist_lazy": mnist_lazy,
    "radius": radius,
    "projection": projection,
    "deng_verdicts": deng_verdicts,
    "ascents": ascents,
    "input_scale_regimes": input_scale_regimes,
    "landscapes": landscapes,
    "robust_norms": robust_norms,
    "best_errors": best_errors,
    "grid_fits": grid_fits,
    "surface_fits": surface_fits,
    "gao2019_verdicts": gao2019_verdicts,
    "gao2019_claims": gao2019_claims,
    "shi2024_verdicts": shi2024_verdicts,
    "shi2024_claims": shi2024_claims,
    "robust_overfitting": robust_overfitting,
}
FIGURES = {"robust_norms.svg": robust_norms_figure, "best_errors.svg": best_errors_figure}

if __name__ == "__main__":
    main()
