"""A study on two machines of one core each, one of which dies in the middle of a training.

    python lose_a_machine.py FOLDER

Prints one JSON object: what happened, and whether this process started JAX.
"""

import json
import os
import secrets
import sys
import threading
import time
from pathlib import Path

os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray.cluster_utils import Cluster

from tether.control.training import evaluate_run, resume, train
from tether.studies.control_trials import training_curve
from tether.studies.trials import Trial, run_trials

STEPS = 81_920
HOW = {"threads": 1, "sinks": (), "progress": False, "checkpoint_every": 8_192}


def learn(settings, place):
    """As the studies' own trial, with frequent checkpoints and no times in its result."""
    run = place / "run"
    with (place / "begins").open("a") as file:
        file.write(f"{rows(run)}\n")
    if (run / "run.json").exists():
        resume(run, **HOW)
    else:
        train("ppo", env="InvertedPendulum-v5", total_steps=settings["steps"], out=run, **HOW)
    curve = training_curve(run / "metrics.jsonl")
    return {**curve, "final": float(evaluate_run(run, episodes=2).returns.mean())}


def double(settings, place):
    return {"value": 2 * settings["x"]}


def trials():
    from lose_a_machine import double, learn

    return [
        Trial("long", learn, {"steps": STEPS}),
        *(Trial(f"double-{x}", double, {"x": x}) for x in range(3)),
    ]


def rows(run):
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def machine_of(pid, nodes):
    """The node whose raylet began a process."""
    raylets = {node.all_processes["raylet"][0].process.pid: node for node in nodes}
    while pid not in raylets:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return raylets[pid]


def main(folder):
    # A dead machine is missed after 1.5 s in place of 15.
    soon = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}
    began = time.monotonic()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": soon})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    told, at = {}, {}

    def clock(what):
        at[what] = round(time.monotonic() - began, 1)

    clock("cluster")

    def kill():
        place = folder / "long"
        while not (list((place / "run").glob("checkpoints/*")) and rows(place / "run") >= 8):
            time.sleep(0.02)
        first = json.loads((place / "claim-1").read_text())["pid"]
        victim = machine_of(first, nodes)
        told["first"] = first
        clock("kill")
        cluster.remove_node(victim, allow_graceful=False)
        clock("killed")
        told["rows_at_death"] = rows(place / "run")
        told["done_at_death"] = (place / "result.json").exists()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    results = run_trials(trials(), folder, cluster=cluster.address, progress=False)
    clock("done")
    killer.join(30)
    second = json.loads(max((folder / "long").glob("claim-*")).read_text())
    from jax._src import xla_bridge

    told |= {
        "begins": [int(row) for row in (folder / "long" / "begins").read_text().split()],
        "rows": rows(folder / "long" / "run"),
        "names": list(results),
        "second": second["pid"],
        "cores_left": ray.cluster_resources()["CPU"],
        "jax_started": xla_bridge.backends_are_initialized(),
        "authentication": os.environ["RAY_AUTH_MODE"],
    }
    ray.shutdown()
    cluster.shutdown()
    clock("shut down")
    print(json.dumps(told | {"at": at}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
