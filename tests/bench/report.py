# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of results, and the limits that they are held to."""

import dataclasses
import os
import statistics
import sys


@dataclasses.dataclass
class Limit:
    what: str
    measured: str
    allowed: str
    kept: bool

    def line(self):
        return f"{'passed' if self.kept else 'FAILED'}: {self.what}: {self.measured} (limit {self.allowed})"


@dataclasses.dataclass
class Table:
    title: str
    how: str
    columns: list
    rows: list = dataclasses.field(default_factory=list)
    limits: list = dataclasses.field(default_factory=list)
    samples: dict = dataclasses.field(default_factory=dict)
    load: list = dataclasses.field(default_factory=lambda: [round(os.getloadavg()[0], 2)])

    def add(self, label, cells):
        self.rows.append([label, *map(str, cells)])

    def at_most(self, what, value, most, form="{:.2f}"):
        """A value is as exact as it is shown, so it is held to its limit as it is shown."""
        shown = form.format(value)
        self.limits.append(Limit(what, shown, f"at most {form.format(most)}",
                                 float(shown) <= float(form.format(most))))

    def at_least(self, what, value, least, form="{:.2f}"):
        shown = form.format(value)
        self.limits.append(Limit(what, shown, f"at least {form.format(least)}",
                                 float(shown) >= float(form.format(least))))

    def equal(self, what, value, wanted):
        self.limits.append(Limit(what, str(value), f"exactly {wanted}", value == wanted))

    def end(self):
        self.load.append(round(os.getloadavg()[0], 2))
        return self

    def text(self):
        lines = [f"### {self.title}", "", self.how, "", *aligned([self.columns, *self.rows]), ""]
        lines += [f"- {limit.line()}" for limit in self.limits]
        lines.append(f"- load of the machine: {self.load[0]} before, {self.load[-1]} after")
        return "\n".join(lines) + "\n"


def aligned(rows):
    """A table that reads well both as text and as Markdown."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) if not place else cell.rjust(width)
                               for place, (cell, width) in enumerate(zip(row, widths))) + " |"
             for row in rows]
    rule = "|" + "|".join("-" * (width + 1) + ("-" if not place else ":")
                          for place, width in enumerate(widths)) + "|"
    return [lines[0], rule, *lines[1:]]


def interleaved(contenders, rounds, measure):
    """measure(contender, round) for everyone in every round, each round from another start on, so that
    what else the machine does meets all alike. Name -> list of results."""
    results = {contender.name: [] for contender in contenders}
    for turn in range(rounds):
        shift = turn % len(contenders)
        for contender in contenders[shift:] + contenders[:shift]:
            results[contender.name].append(measure(contender, turn))
            print(".", end="", file=sys.stderr, flush=True)
    return results


def ratio(results, name, other):
    """Median of the ratios of one round's two."""
    return statistics.median(a / b for a, b in zip(results[name], results[other]))


def spread(results, name, other):
    """The middle half of the ratios."""
    ratios = sorted(a / b for a, b in zip(results[name], results[other]))
    if len(ratios) < 4:
        return f"{ratios[0]:.2f}..{ratios[-1]:.2f}"
    low, _, high = statistics.quantiles(ratios, n=4)
    return f"{low:.2f}..{high:.2f}"


def size(count):
    """Bytes for people."""
    for unit, bytes_ in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(count) >= 10 * bytes_ or (unit == "KiB" and abs(count) >= bytes_):
            return f"{count / bytes_:.1f} {unit}"
    return f"{count:.0f} B"
