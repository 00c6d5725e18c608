"""Training by several processes, one per device, that each hold the whole net and a part of the data.

The group is the one that torchrun, or `launch`, describes in the environment. Gradients are averaged by PyTorch's
DistributedDataParallel while backward runs; from there on all ranks do the same with the same numbers, so that
weights stay equal. What isn't on the devices (requests to stop, snapshots' states, tests' sums) goes through a second
group on the host, which no device waits for.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from forcereg.data.feed import Shard
from forcereg.errors import ForceregError, UsageError
from forcereg.net.module import Net
from forcereg.net.scoring import Score, Tally, add_up, means
from forcereg.solver.contact import Contact, LostContact
from forcereg.solver.launch import AGAIN, in_group
from forcereg.system.device import choose_device

PATIENCE = timedelta(minutes=30)
"""How long a rank waits for the others, for example while rank 0 writes a snapshot."""
REQUESTS = ("stop_requested", "snapshot_requested")
DRIFT = 1e-3
_NAMED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_BROKEN = re.compile(r"gloo|nccl|\bpeer\b|\bstore\b|socket|Broken pipe|Timed out|timeout|process group", re.IGNORECASE)

T = TypeVar("T")


class Group:
    """The processes that train together; this one is `rank` of `size`. Alone, every method returns at once.

    `device`: that this rank was given, None if it may choose. `divide`: see Shard.
    """

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        device: str | None = None,
        divide: bool = False,
        control: Any = None,
        contact: Contact | None = None,
    ) -> None:
        self.rank, self.size, self.device = rank, size, device
        self.shard = Shard(rank, size, divide)
        self.raised = dict.fromkeys(REQUESTS, False)
        self._control = control
        self.contact = contact or Contact()
        self._asked = set[str]()
        self._since: dict[str, float] = {}
        self._sent: tuple[Any, Tensor] | None = None

    # -- tensors on the devices

    def averaging(self, value: Tensor) -> Callable[[], Tensor]:
        """Starts on the mean of `value` over all ranks, which calling the result gives, without waiting for devices."""
        if self.size == 1:
            return lambda: value
        # divided before the sum, which can't overflow then
        part = value / self.size
        work = dist.all_reduce(part, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return part

        return wait

    def mean(self, value: Tensor) -> Tensor:
        """The mean of `value` over all ranks."""
        return self.averaging(value)()

    def begin(self, *nets: Net) -> None:
        """All ranks start with rank 0's blobs. Raises ForceregError for a net that several processes can't run."""
        if self.size > 1:
            for spec in (spec for net in nets for spec in net.spec.layers if spec.type == "HDF5Output"):
                raise spec.fail("writes a file, which several processes can't do together; leave it out of training")
        self.spread(*nets)

    def spread(self, *nets: Net, learned: bool = True) -> None:
        """Gives all ranks rank 0's blobs, or only what isn't learned: statistics, of which rank 0's are saved."""
        if self.size == 1:
            return
        blobs = {id(blob): blob.detach() for net in nets for blobs in net.params.values() for blob in blobs
                 if learned or not isinstance(blob, nn.Parameter)}  # fmt: skip
        for blob in blobs.values():
            dense = blob.contiguous()  # it may be laid out channels last
            dist.broadcast(dense, 0)
            blob.copy_(dense)

    # -- objects on the hosts

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, by rank, on every rank."""
        # by the hosts' group: pickled objects on a GPU would wait for its stream
        found: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value, group=self._control)
        return found

    def share(self, value: Any) -> Any:
        """Rank 0's `value`."""
        holder = [value]
        if self.size > 1:
            dist.broadcast_object_list(holder, 0, group=self._control)
        return holder[0]

    def once(self, work: Callable[[], T]) -> T:
        """What `work` gives on rank 0, which alone runs it; the others wait."""
        with self.contact.working(self.rank == 0):
            return self.share(work() if self.rank == 0 else None)

    # -- requests

    def request(self, name: str) -> None:
        """Asks all ranks for one of `REQUESTS`; safe in a signal handler."""
        # the first time counts: insisting is asking again later
        self._since.setdefault(name, time.monotonic())
        if self.size > 1:
            self._asked.add(name)
        else:
            self.raised[name] = True

    def withdraw(self, name: str) -> None:
        """Forgets one of `REQUESTS`."""
        self.raised[name] = False
        self._since.pop(name, None)

    def insists(self, name: str) -> bool:
        """Whether who asks here for `name` did so before, and not just now: one signal may come by several ways."""
        return time.monotonic() - self._since.get(name, math.inf) > AGAIN

    def agree(self) -> None:
        """Every rank calls this at the same places: what any asked for by the last one, all see from here on.

        Sent in the background and looked at one call later, so that an iteration waits for nothing.
        """
        if self.size == 1:
            return
        if self._sent is not None:
            work, flags = self._sent
            work.wait()
            self.raised.update({name: True for name, flag in zip(REQUESTS, flags.tolist(), strict=True) if flag})
        # the flags in flight are those of the last call: all ranks look at the same ones in the same iteration
        self.contact.passed(settled=self.raised["stop_requested"])
        asked, self._asked = self._asked, set()
        flags = torch.tensor([name in asked for name in REQUESTS], dtype=torch.uint8)
        self._sent = dist.all_reduce(flags, dist.ReduceOp.MAX, self._control, async_op=True), flags

    # -- what the solver does

    def check_equal(self, weights: Sequence[Tensor]) -> None:
        """Raises ForceregError if ranks hold different weights, by their norms. Reads the device."""
        if self.size == 1 or not weights:
            return
        # norms, not weights: what differs at all differs there, and they are a few bytes
        norms = torch.stack([torch.linalg.vector_norm(weight.detach(), dtype=torch.float64) for weight in weights])
        found = torch.stack(self.gather(norms.cpu()))
        # kernels may differ in rounding from one GPU to the next; what has come apart is farther off than that
        far = ((found - found[0]).abs() > DRIFT * found[0]).any(1)
        if far.any():
            raise ForceregError(
                f"the weights of rank {int(far.nonzero()[0])} are no longer those of rank 0; no snapshot is written; "
                "check that all ranks run the same program, solver and data on sound hardware"
            )

    def pack(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Adds to rank 0's state what the other ranks have of their own."""
        if self.size == 1:
            return extra
        # rank 0's own stand where a single process has them, so that it can go on from the state alone
        _, *others = self.gather({name: extra[name] for name in ("random", "carried")})
        return {**extra, "ranks": {str(rank): state for rank, state in enumerate(others, 1)}}

    def unpack(self, extra: Mapping[str, Any]) -> dict[str, Any]:
        """This rank's part of a packed state; without random state if there were fewer ranks."""
        if self.rank == 0:
            return dict(extra)
        rest = {name: value for name, value in extra.items() if name not in ("random", "carried")}
        return {**rest, **extra.get("ranks", {}).get(str(self.rank), {})}

    def mean_outputs(self, outputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The mean of output blobs over all ranks; this rank's where shapes differ. Reads the device."""
        if self.size == 1:
            return outputs
        every = self.gather({name: blob.detach().cpu() for name, blob in outputs.items()})
        # blobs of a varying batch can't be averaged element by element
        same = [name for name in outputs if len({one[name].shape for one in every}) == 1]
        return {**outputs, **{name: torch.stack([one[name] for one in every]).float().mean(0) for name in same}}

    def score(
        self,
        net: Net,
        iterations: int,
        before: Callable[[int], bool],
        after: Callable[[int, Mapping[str, Tensor]], None],
        inputs: Callable[[int], Mapping[str, Tensor] | None],
        tally: Tally | None = None,
    ) -> Score:
        """As `scoring.score`; each rank runs a part of the batches, and data goes on behind all of them.

        All ranks run all batches of a net where one depends on the last (recurrent state, Python layers).
        """
        # a part alone would start from another state than the whole run has there
        if self.size == 1 or any(layer and (layer.carried() or layer.runs_code) for _, layer in net.built):
            return means(net, [add_up(net, iterations, before, after, inputs, tally=tally)])
        start, stop = (iterations * rank // self.size for rank in (self.rank, self.rank + 1))
        for feed in net.feeds.values():
            feed.skip(start)
        common = iterations // self.size  # ranks may only agree on something where all are
        part = add_up(
            net,
            stop - start,
            lambda index: index >= common or before(start + index),
            after,
            lambda index: inputs(start + index),
            at_once=1,
        )
        for feed in net.feeds.values():
            feed.skip(iterations - stop)
        return means(net, self.gather(part.cpu()))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Leaves the group behind the block. LostContact if another rank is gone, so that that one's error counts."""
        try:
            yield
            if self.size > 1:
                self._finish()
        except RuntimeError as error:
            if self.size == 1 or not _BROKEN.search(str(error)):
                raise
            raise LostContact(
                f"lost contact with another rank ({_cause(error)}), see what that one says; go on from the last "
                "snapshot with --resume auto"
            ) from error

    def _finish(self) -> None:
        if self._sent is not None:
            self._sent[0].wait()
        self.contact.finish()
        dist.destroy_process_group()


class Request:
    """A flag of the solver, `solver.NAME`, that any rank may set and that all see in the same iteration."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, solver: Any, owner: type) -> bool:
        return solver.group.raised[self.name]

    def __set__(self, solver: Any, value: bool) -> None:
        if value:
            solver.group.request(self.name)
        else:
            solver.group.withdraw(self.name)


def join(devices: Sequence[str | None], param: Any, divide: bool = False) -> Group:
    """The group of the environment, or this process alone. `devices`: asked for, one or one for each local rank.

    `param`: SolverParameter. NCCL on GPUs, gloo on the CPU. Raises ForceregError if the environment is incomplete or
    the others don't come, UsageError if there are fewer GPUs than ranks.
    """
    if not in_group():
        return Group(device=devices[0])
    lacking = [name for name in _NAMED if name not in os.environ]
    if lacking:
        raise ForceregError(
            f"WORLD_SIZE is set but {', '.join(lacking)} is not; start with torchrun or unset WORLD_SIZE"
        )
    contact = Contact()
    # before anything that may wait for others: signals are heard meanwhile
    contact.start()
    device = _local_device(devices, param)
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
        # torchrun may have started these processes again
        if "TORCHELASTIC_RUN_ID" in os.environ:
            store = dist.PrefixStore(_meet(store, rank, size), store)
        options: dict[str, Any] = {"store": store, "rank": rank, "world_size": size, "timeout": PATIENCE}
        if device.type == "cuda":
            torch.cuda.set_device(device)
            dist.init_process_group("nccl", device_id=device, **options)
        else:
            dist.init_process_group("gloo", **options)
        # gloo, also beside NCCL: a second group that no device waits for
        control = dist.new_group(timeout=PATIENCE, backend="gloo")
        contact.meet(PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise LostContact(f"cannot join the other ranks ({_cause(error)})") from error
    chosen = str(device) if device.type == "cuda" else devices[0]
    return Group(rank, size, chosen, divide, control, contact)


def _meet(store: Any, rank: int, size: int) -> str:
    """A name that only the processes have which are alive now.

    torchrun keeps its store when it starts processes again: addresses of the dead are in it. How often this one was
    started doesn't tell, because that differs between machines. So every rank leaves a ticket of its own, for which
    rank 0, which can't know whether its owner is alive, gives the name, until all have acknowledged it.
    """
    own, deadline = secrets.token_hex(8), time.monotonic() + PATIENCE.total_seconds()
    if rank:
        store.set(f"ticket {rank}", own)
        name = store.get(own).decode()
        store.set(f"{name} {rank}", "")
        return name
    while not store.check([f"{own} {other}" for other in range(1, size)]):
        for key in (f"ticket {other}" for other in range(1, size)):
            if store.check([key]):
                store.set(store.get(key).decode(), own)
        if time.monotonic() > deadline:
            raise RuntimeError("timed out")
        time.sleep(0.02)
    return own


def _local_device(devices: Sequence[str | None], param: Any) -> torch.device:
    """The device of this rank: that at its place in `devices`, or of the GPUs the one with its local number."""
    local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if 1 < len(devices) < count:
        raise UsageError(f"--gpu names {len(devices)} GPUs for {count} processes on this machine; name one for each")
    asked = devices[local] if len(devices) > 1 else devices[0]
    device = choose_device(asked, param, lambda text: None)
    if device.type == "cpu" or len(devices) > 1:
        return device
    if asked is not None and ":" in asked and count > 1:
        raise UsageError(f"{asked} is one GPU for {count} processes on this machine; leave it out, or name all")
    if local >= torch.cuda.device_count():
        raise UsageError(
            f"{count} processes on this machine, but {torch.cuda.device_count()} GPUs; start one for each GPU, or use "
            "--device cpu"
        )
    return torch.device("cuda", local)


def _cause(error: Exception) -> str:
    text = str(error).splitlines()[0]
    known = re.search(r"connection \w+ by peer|connection refused|broken pipe|time[d ]*out", text, re.IGNORECASE)
    return known[0] if known else text
