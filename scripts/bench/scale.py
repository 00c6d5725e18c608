"""What gradients cost between many machines: a model, of measured compute and counted bits, and a check of it.

    python scripts/bench/scale.py OUT.csv [--nets lenet,alexnet] [--check]
    python scripts/bench/scale.py OUT.csv --table

An iteration of one process alone is timed, and what each scheme computes, with nobody to send to; how many bits go out
is counted. Times over links are then sums of these, as if nothing went at once: a model, no measurement. --check trains
in 2 and 4 processes here (less than a minute), each of whose messages takes as long as a link of 100 Mbit/s and 1 ms
would, and writes OUT_check.csv. What is there of the same machine, threads, net and batch isn't measured again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import kept
import torch
import torch.distributed as dist
from scale_rows import SCHEMES, Check, Row, at, tables

from forcereg.net.module import Net
from forcereg.registry import gradient_scheme
from forcereg.schema import NetParameter, SolverParameter
from forcereg.schema.text import read_net
from forcereg.solver.distributed import Group, join
from forcereg.solver.gradients import Scheme, Settings
from forcereg.solver.gradients.base import Bucket, Rehearsal, Sent, Wire, traffic
from forcereg.solver.gradients.report import Silent, own_group, rehearsed
from forcereg.solver.gradients.ternarized import GATHERED, carrier_of
from forcereg.solver.launch import environment, free_port
from forcereg.solver.loop import Solver
from forcereg.system.files import write_text
from forcereg.system.shipped import configs_dir

NETS = {
    "lenet": ("examples/mnist/lenet_train_test.prototxt", (1, 28, 28), 64),
    "alexnet": ("models/alexnet/train_val.prototxt", (3, 227, 227), 16),
}
"""Net file, what it is fed, and its batch."""
RANKS = (1, 2, 4, 8, 16, 64, 256, 1024)
THROTTLE, DELAY, CHECKED, CHECK_BATCH, WARM, LAPS = 1e8, 1e-3, (2, 4), 4, 2, 5
SETTINGS = Settings(powersgd_start=0)


class Throttled(Scheme):
    """Another scheme, whose messages take as long as a link of THROTTLE bits and DELAY seconds would, one by one."""

    def __init__(self, scheme: Scheme) -> None:
        super().__init__(scheme.name, scheme.settings, scheme.wire)
        self.scheme, self.link, self.slept = scheme, threading.Lock(), 0.0

    def attach(self, net: Net) -> None:
        """See Scheme."""
        self.scheme.attach(net)

    def hook(self, bucket: Bucket) -> Sent:
        """See Scheme."""
        bits, steps = traffic(self.scheme.messages(bucket.weights, self.wire.size), self.wire.size)
        seconds = bits / THROTTLE + steps * DELAY
        self.slept += seconds

        def late(sent: Sent) -> Any:
            found = sent.value()
            with self.link:
                time.sleep(seconds)
            return found

        return self.scheme.hook(bucket).then(late)


def solver_of(net: str, batch: int, group: Group | None = None) -> Solver:
    """Trains a shipped net on whatever it is fed."""
    file, shape, _ = NETS[net]
    made = NetParameter(name=net)
    shapes = {"shape": [{"dim": [batch, *shape]}, {"dim": [batch]}]}
    made.layer.add(name="data", type="Input", top=["data", "label"], input_param=shapes)
    made.layer.extend(layer for layer in read_net(configs_dir() / file).message.layer if layer.type != "Data")
    param = SolverParameter(train_net_param=made, base_lr=1e-3, lr_policy="fixed", momentum=0.9, weight_decay=5e-4)
    param.random_seed, param.solver_mode = 1, SolverParameter.SolverMode.Value("CPU")
    return Solver(param, device="cpu", group=group, observers=[lambda event: None])


def stepped(solver: Solver, net: str, batch: int, laps: int) -> float:
    """Seconds of an iteration, the least of `laps`, behind WARM others."""
    shape = NETS[net][1]
    inputs = {"data": torch.randn(batch, *shape), "label": torch.randint(10, (batch,)).float()}
    solver.step(WARM, inputs)
    times = []
    for _ in range(laps):
        began = time.perf_counter()
        solver.step(1, inputs)
        times.append(time.perf_counter() - began)
    return min(times)


def bucket_of(solver: Solver) -> Bucket:
    """The gradients that the last iteration left."""
    weights = [weight for weight in solver.net.parameters() if weight.grad is not None]
    return Bucket(0, torch.cat([weight.grad.reshape(-1) for weight in weights if weight.grad is not None]), weights)


def measured(net: str, place: tuple[str, str], laps: int = LAPS) -> list[Row]:
    """The rows of a net, on this machine."""
    batch = NETS[net][2]
    solver = solver_of(net, batch)
    compute, bucket = stepped(solver, net, batch, laps), bucket_of(solver)
    alone, rows, today = own_group(0), list[Row](), str(datetime.date.today())
    for name in SCHEMES:
        work = dict[str, float]()
        for ranks in RANKS:
            scheme = gradient_scheme.get(name)(name, SETTINGS, Rehearsal(alone, ranks))
            # what comes from others differs by how it is carried, of ternary gradients alone
            kind = str(ranks if ranks <= GATHERED else carrier_of(ranks)) if name == "ternary" else name
            if ranks > 1 and kind not in work:
                work[kind] = rehearsed(scheme, solver.net, bucket, 3).work
            scheme.attach(solver.net)
            sent = traffic(scheme.messages(bucket.weights, ranks), ranks) if ranks > 1 else (0.0, 0)
            row = Row(today, *place, net, str(batch), name, "", 1e3 * compute, 1e3 * work.get(kind, 0.0), 0.0, 0.0)
            rows.append(at(row, ranks, *sent))
    return rows


def throttled(group: Group, laps: int = LAPS) -> list[dict[str, Any]]:
    """One process of the check: what each scheme took of an iteration, and what the model says."""
    found, own = list[dict[str, Any]](), own_group(group.rank)
    for name in SCHEMES:
        kind = gradient_scheme.get(name)
        solver = solver_of("lenet", CHECK_BATCH, group)
        solver.passes.average_by(Silent("silent", SETTINGS, Wire()))
        alone = stepped(solver, "lenet", CHECK_BATCH, laps)
        solver = solver_of("lenet", CHECK_BATCH, group)  # with weights that are everywhere the same
        throttle = Throttled(kind(name, SETTINGS, Wire()))
        solver.passes.average_by(throttle)
        seconds = stepped(solver, "lenet", CHECK_BATCH, laps)
        work = rehearsed(kind(name, SETTINGS, Rehearsal(own, group.size)), solver.net, bucket_of(solver), 3).work
        modelled = alone + work + throttle.slept / (WARM + laps)
        found.append({"scheme": name, "modelled_ms": 1e3 * modelled, "measured_ms": 1e3 * seconds})
    return found


def process(out: Path) -> None:
    """One of those that `checks` starts; rank 0 writes what it found."""
    torch.set_num_threads(1)
    group = join(["cpu"], SolverParameter())
    with group.together():
        found = throttled(group)
        if group.rank == 0:
            write_text(out, json.dumps(found))


def checks(machine: str) -> list[Check]:
    """Model and measurement of processes on this machine."""
    found = []
    for size in CHECKED:
        with tempfile.TemporaryDirectory() as folder, free_port() as port:
            command = [sys.executable, __file__, str(Path(folder, "found.json")), "--process"]
            env = {**os.environ, **environment(size, port)}
            ranks = [subprocess.Popen(command, env={**env, "RANK": str(rank)}) for rank in range(size)]
            if any([process.wait() for process in ranks]):
                raise SystemExit("scale.py: a process of the check failed; see above")
            told = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
        link = f"{THROTTLE / 1e6:g} Mbit/s, {1e3 * DELAY:g} ms"
        common = (str(datetime.date.today()), machine, "lenet", str(CHECK_BATCH))
        found += [
            Check(*common, one["scheme"], str(size), link, one["modelled_ms"], one["measured_ms"]) for one in told
        ]
    return found


def main() -> None:
    """Measures what is missing, or prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="CSV file of what is measured")
    parser.add_argument("--nets", default=",".join(NETS), help=f"of {', '.join(NETS)}")
    parser.add_argument("--check", action="store_true", help="train in processes behind a throttle, too")
    parser.add_argument("--table", action="store_true", help="print OUT.csv as Markdown")
    parser.add_argument("--machine", default="this machine", help="what it is called in the rows")
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.process:
        return process(args.out)
    beside = args.out.with_name(f"{args.out.stem}_check.csv")
    rows, checked = kept.read(args.out, Row), kept.read(beside, Check)
    if args.table:
        print(tables(rows, checked), end="")
        return
    if unknown := [net for net in args.nets.split(",") if net not in NETS]:
        raise SystemExit(f"--nets has '{unknown[0]}'; expected of: {', '.join(NETS)}")
    place = (args.machine, str(torch.get_num_threads()))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    for net in args.nets.split(","):
        if not any(row.place == (*place, net, str(NETS[net][2])) for row in rows):
            rows += measured(net, place)
            kept.write(args.out, rows, Row)
            print(f"{net}: measured", flush=True)
    dist.destroy_process_group()
    if args.check:
        kept.write(beside, checks(args.machine), Check)
    print(tables(rows, kept.read(beside, Check)), end="")


if __name__ == "__main__":
    main()
