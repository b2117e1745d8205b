"""Whether the labelling page teaches a policy as well as the oracle does; one run, one JSON file.

    python benchmarks/person.py
    python benchmarks/person.py --seeds 1000-1000 --steps 200000

For each seed `tether prefer --teacher human` trains while a scripted person in Chromium answers its
queries on the page of `tether label`. The person waits until both clips play, looks up what the
page never sends, the true return of the segment behind each clip, and presses an arrow key. Beside
it `--teacher oracle` trains from as many labels and the same seed. Both policies are evaluated by
the true reward. Needs a Chromium and the extra `label`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from contenders import ROOT
from label import served
from playwright.sync_api import expect, sync_playwright
from report import machine, versions

from tether.learning.seeds import parse_seeds
from tether.preferences.items import Segment
from tether.preferences.store import Store
from tether.studies.statistics import summarize

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required")
TETHER = (sys.executable, "-m", "tether")
PATIENCE = 600_000
"""Milliseconds that the person waits for a pair: the training may be busy learning."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--env", default="Hopper-v5")
    add("--seeds", default="0-4")
    add("--labels", type=int, default=150)
    add("--steps", type=int, default=500_000, help="of each training")
    add("--runs", type=Path, help="folder that keeps the runs; finished ones are not repeated")
    add("--picture", type=Path, help="PNG of the page, beside the first seed's training")
    add("--out", type=Path, default=ROOT / "results" / "person.json")
    return parser.parse_args()


def training(args: argparse.Namespace, seed: int, teacher: str, run: Path) -> list[str]:
    options = {
        "env": args.env,
        "labels": args.labels,
        "total-steps": args.steps,
        "seed": seed,
        "teacher": teacher,
        "out": run,
    }
    return [*TETHER, "prefer", *(str(v) for n, x in options.items() for v in (f"--{n}", x))]


def returns(run: Path) -> float:
    """The mean true return of 20 episodes with the last policy."""
    command = [*TETHER, "evaluate", str(run), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["return_mean"])


def answer(
    page: Any, store: Store, trained: subprocess.Popen[bytes], labels: int, picture: Path | None
) -> list[float]:
    """Answers until there are enough labels; how long each pair took to be there, in seconds."""
    waits: list[float] = []
    while store.counts().answered < labels:
        began = time.monotonic()
        expect(page.locator(".card.ready")).to_have_count(2, timeout=PATIENCE)
        waits.append(time.monotonic() - began)
        if picture is not None and len(waits) == labels * 2 // 3:
            page.screenshot(path=picture, full_page=True)
        shown = [card.get_attribute("data-item") for card in page.locator(".card").all()]
        left, right = (item for item in store.items(shown) if isinstance(item, Segment))
        gap = left.true_return - right.true_return
        page.keyboard.press("ArrowLeft" if gap > 0 else "ArrowRight" if gap < 0 else "ArrowDown")
        expect(page.locator(f'.card[data-item="{shown[0]}"]')).to_have_count(0, timeout=PATIENCE)
        if trained.poll() is not None:
            raise SystemExit(f"the training ended with {trained.returncode} before its labels did")
        wait_for_answer(store, len(waits))
    return waits


def wait_for_answer(store: Store, count: int) -> None:
    """The page sends an answer a moment after the key."""
    end = time.monotonic() + 30
    while store.counts().answered < count:
        if time.monotonic() > end:
            raise SystemExit(f"answer {count} did not reach the store in 30 s")
        time.sleep(0.01)


def taught_on_the_page(
    browser: Any, args: argparse.Namespace, seed: int, run: Path, picture: Path | None
) -> dict[str, Any]:
    """One training beside its person."""
    log = (run.parent / f"{run.name}.log").open("wb")
    began = time.monotonic()
    trained = subprocess.Popen(training(args, seed, "human", run), stdout=log, stderr=log)
    while not (run / "preferences.sqlite").exists():
        if trained.poll() is not None:
            raise SystemExit(f"the training ended with {trained.returncode}; see {log.name}")
        time.sleep(0.2)
    try:
        with served(str(run)) as (_, url), Store.open(run / "preferences.sqlite") as store:
            page = browser.new_page()
            page.goto(url)
            page.get_by_label("Name", exact=True).fill("script")
            page.keyboard.press("Enter")
            waits = answer(page, store, trained, args.labels, picture)
            labelled = time.monotonic() - began
            page.close()
        if trained.wait():
            raise SystemExit(f"the training ended with {trained.returncode}; see {log.name}")
    finally:
        trained.terminate()
        trained.wait()
        log.close()
    return {
        "labelled_after_seconds": labelled,
        "trained_after_seconds": time.monotonic() - began,
        "median_wait": median(waits),
        "p95_wait": float(np.quantile(waits, 0.95)),
        "longest_wait": max(waits),
    }


def measure(
    browser: Any, args: argparse.Namespace, seed: int, runs: Path, picture: Path | None
) -> dict[str, Any]:
    kept = runs / f"{seed}.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    for name in ("oracle", "page"):
        shutil.rmtree(runs / f"{name}-{seed}", ignore_errors=True)
    command = training(args, seed, "oracle", runs / f"oracle-{seed}")
    subprocess.run(command, capture_output=True, check=True)
    found = {
        "seed": seed,
        "oracle": returns(runs / f"oracle-{seed}"),
        **taught_on_the_page(browser, args, seed, runs / f"page-{seed}", picture),
        "page": returns(runs / f"page-{seed}"),
    }
    kept.write_text(json.dumps(found))
    return found


def main() -> None:
    args = parse()
    chromium = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if chromium is None:
        raise SystemExit("no Chromium is installed (apt-get install chromium)")
    runs = args.runs or Path(tempfile.mkdtemp(prefix="person-"))
    # What was measured with other settings is another measurement.
    runs /= f"{args.env}-{args.labels}-{args.steps}"
    runs.mkdir(parents=True, exist_ok=True)
    measured: list[dict[str, Any]] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=list(FLAGS))
        for seed in parse_seeds(args.seeds):
            picture = None if measured else args.picture
            measured.append(measure(browser, args, seed, runs, picture))
            print(json.dumps(measured[-1]), file=sys.stderr, flush=True)
        browser.close()
    found: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "env": args.env,
        "labels": args.labels,
        "steps": args.steps,
        "seeds": measured,
    }
    reached = {
        teacher: summarize([one[teacher] for one in measured]) for teacher in ("oracle", "page")
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found | reached, indent=1) + "\n")
    print(json.dumps(reached))


if __name__ == "__main__":
    main()
