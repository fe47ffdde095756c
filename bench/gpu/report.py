"""The report's rows and what missed its budget."""

import pathlib
import time

misses = []


class Rows(list):
    """Printed as they come: a run takes minutes."""

    def append(self, row):
        print(" | ".join(row), flush=True)
        super().append(row)


rows = Rows()


def note(what, shown, reference="", budget="", verdict=""):
    """A row without a budget of its own."""
    rows.append((what, shown, reference, budget, verdict))


def row(what, claimed, truth, budget, unit=""):
    """Numbers that must agree within a budget."""
    if claimed is None or truth is None:
        verdict, miss = "no value", True
    else:
        miss = abs(claimed - truth) > budget
        verdict = "MISSED" if miss else "ok"
    shown = [f"{x:.2f}{unit}" if x is not None else "-" for x in (claimed, truth)]
    rows.append((what, shown[0], shown[1], f"± {budget:g}{unit}", verdict))
    if miss:
        misses.append(what)


def equal(what, ours, theirs):
    """Answers that must be the same."""
    same = ours == theirs
    rows.append((what, str(ours), str(theirs), "equal", "ok" if same else "MISSED"))
    if not same:
        misses.append(what)


def at_most(what, measured, budget, unit):
    """A cost and its limit."""
    verdict = "ok" if measured <= budget else "MISSED"
    rows.append((what, f"{measured:.1f} {unit}", "", f"≤ {budget:g} {unit}", verdict))
    if measured > budget:
        misses.append(what)


def finish(title, path):
    lines = ["| what | podgauge | reference | budget | verdict |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(r) + " |" for r in rows]
    table = "\n".join(lines)
    print(f"\n{title}, {time.strftime('%Y-%m-%d', time.gmtime())}\n\n{table}\n")
    if misses:
        print(f"missed: {', '.join(misses)}")
    if path:
        pathlib.Path(path).write_text(table + "\n")
