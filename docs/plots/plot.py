#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Draws the plots of docs/prefetch-study.md from the study's CSV files, with nothing but Python.

    build/core/tests/pace/fvd-pace-study DIR && docs/plots/plot.py DIR docs/plots"""

import csv
import pathlib
import sys

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 120, 28, 44
COLOURS = ["#1f5fa8", "#c1440e", "#2e7d32", "#7b4fa3"]


def read(path):
    with open(path, encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return rows[0], [[float(cell) for cell in row] for row in rows[1:]]


def steps(most):
    """Round numbers from 0 to a little above @most."""
    step = next(s for e in range(-2, 6) for s in (10 ** e, 2 * 10 ** e, 5 * 10 ** e)
                if most / s <= 6)
    return [step * i for i in range(int(most / step) + 2)]


def draw(source, target, title, unit, even):
    """@even: the values of x stand at even distances, whatever they are."""
    names, rows = read(source)
    ys = steps(max(max(row[1:]) for row in rows))
    xs = list(range(len(rows))) if even else [row[0] for row in rows]

    def x_at(x):
        return LEFT + (x - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)

    def y_at(y):
        return HEIGHT - BOTTOM - y / ys[-1] * (HEIGHT - TOP - BOTTOM)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
           'font-family="sans-serif" font-size="11">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="16" font-size="13">{title}</text>']
    for y in ys:
        out.append(f'<path d="M{LEFT} {y_at(y):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y_at(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    marks = zip(xs, (row[0] for row in rows)) if even else ((x, x) for x in steps(xs[-1])
                                                          if x <= xs[-1])
    for x, label in marks:
        out.append(f'<text x="{x_at(x):.1f}" y="{HEIGHT - BOTTOM + 16}" '
                   f'text-anchor="middle">{label:g}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" '
               f'text-anchor="middle">{names[0]}</text>')
    out.append(f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" '
               f'transform="rotate(-90 14 {HEIGHT / 2})">{unit}</text>')
    for column, name in enumerate(names[1:], 1):
        colour = COLOURS[column - 1]
        points = " ".join(f"{x_at(x):.1f},{y_at(row[column]):.1f}" for x, row in zip(xs, rows))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" '
                   'stroke-width="1.6"/>')
        y = TOP + 16 * column
        out.append(f'<path d="M{WIDTH - RIGHT + 10} {y}h18" stroke="{colour}" '
                   'stroke-width="2"/>')
        out.append(f'<text x="{WIDTH - RIGHT + 32}" y="{y + 4}">{name}</text>')
    out.append("</svg>\n")
    pathlib.Path(target).write_text("\n".join(out), encoding="utf-8")


def main():
    data, plots = map(pathlib.Path, sys.argv[1:3])
    draw(data / "fill.csv", plots / "fill.svg",
         "Filling 1 GiB over 1 Gbit/s", "MiB/s", even=True)
    draw(data / "around-guest.csv", plots / "around-guest.svg",
         "Prefetch over 200 Mbit/s, 2 ms; a guest reads from 5 s to 10 s", "MB/s", even=False)
    draw(data / "joining.csv", plots / "joining.svg",
         "Four machines come to a link of 200 Mbit/s, 10 ms", "MB/s", even=False)


if __name__ == "__main__":
    main()
