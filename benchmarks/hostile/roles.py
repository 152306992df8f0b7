"""The client processes of the hostile load: probes, good clients, senders of hostile images, and attackers.

Each role runs in a process of its own, so that its work does not delay the others' clocks, and returns its ``Ledger``.
"""

import asyncio
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Event

from benchmarks.hostile import connections, requests
from benchmarks.hostile.client import LostError, ask, form
from benchmarks.hostile.images import KINDS, MEGABYTE, damaged
from benchmarks.hostile.ledger import (
    FAILED,
    HUNG,
    LOST,
    OVERLOADED,
    REFUSED,
    RIGHT,
    TOO_SLOW,
    UNDOCUMENTED,
    WRONG,
    Ledger,
)
from benchmarks.hostile.questions import Question, ask_question, canonical, questions
from benchmarks.hostile.target import BYTES, Attack, Target, attack

__all__ = ["PROBES", "Role", "roles", "run_role", "start_role"]

PROBES = ("/health/live", "/health/ready", "/metrics")

PROBE_INTERVAL_SECONDS = 0.1

PROBE_TIMEOUT_SECONDS = 10.0

ATTACKS: tuple[Attack, ...] = (*connections.ATTACKS, *requests.ATTACKS)

SENDERS, GOOD_CLIENTS, ATTACKERS = 4, 3, 6
"""Number of each at a time."""

HOSTILE_EVERY = 10
"""One in ``HOSTILE_EVERY`` inputs is one of ``KINDS``; the others are damaged files."""

SIZES = (1, 8, 32)
"""Sizes of hostile images in MB, in turn."""

MOST_DELAY, PATIENCE_SECONDS = 1.2, 60.0
"""Inputs that are not sent after ``MOST_DELAY`` times the load's duration plus ``PATIENCE_SECONDS`` are left out."""

NICENESS = 10
"""Priority of the clients: on a real network they would not use the service's processors at all."""


@dataclass(frozen=True, slots=True)
class Role:
    """What a process does, and all that it needs to know."""

    name: str
    seed: int
    target: Target
    seconds: float
    inputs: int
    answers: dict[str, bytes]


_over: Event
"""Set when all roles should end."""


def start_role(over: Event) -> None:
    """Prepare a role's process."""
    global _over
    _over = over


def run_role(role: Role) -> Ledger:
    """Run a role to its end."""
    work: dict[str, Callable[[Role, Ledger], Awaitable[None]]] = {
        "probes": probe,
        "good": ask_for_ever,
        "inputs": send_inputs,
        "attacks": attack_for_ever,
    }
    if role.name != "probes":
        os.nice(NICENESS)
    ledger = Ledger()
    asyncio.run(work[role.name](role, ledger))  # type: ignore[arg-type]
    return ledger


async def judge_question(role: Role, ledger: Ledger, activity: str, question: Question) -> None:
    """Ask until there is an answer, and compare it bit by bit; a refusal for lack of room is tried again."""
    start = time.monotonic()
    try:
        async with asyncio.timeout(role.target.patience):
            while True:
                began = time.monotonic()
                try:
                    reply = await ask_question(role.target.port, question)
                except LostError as error:
                    ledger.trouble(activity, question.name, LOST, str(error), began)
                    return
                ledger.statuses[reply.status] += 1
                if reply.status != OVERLOADED:
                    break
                ledger.count(activity, REFUSED)
                await asyncio.sleep(min(2.0, float(reply.headers.get("retry-after", 1))))
    except TimeoutError:
        ledger.trouble(activity, question.name, HUNG, f"no answer after {role.target.patience:g} s", start)
        return
    text = f"{reply.status} {reply.body[:300]!r}"
    if reply.status >= 500:
        ledger.trouble(activity, question.name, FAILED, text, began)
    elif reply.status != 200:
        ledger.trouble(activity, question.name, UNDOCUMENTED, text, began)
    elif canonical(reply) == role.answers[question.name]:
        ledger.count(activity, RIGHT)
    else:
        ledger.trouble(activity, question.name, WRONG, text, began)


async def ask_for_ever(role: Role, ledger: Ledger) -> None:
    """Good clients: each sends one good image after another."""
    known = list(questions())

    async def one(number: int) -> None:
        chance = random.Random(role.seed + number)
        while not _over.is_set():
            await judge_question(role, ledger, "good images", chance.choice(known))
            await asyncio.sleep(chance.uniform(0, 0.1))

    await asyncio.gather(*map(one, range(GOOD_CLIENTS)))


async def probe(role: Role, ledger: Ledger) -> None:
    """Request health and metrics as an orchestrator does, but more often."""

    async def once(path: str) -> None:
        start = time.monotonic()
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                status = (await ask(role.target.port, "GET", path)).status
        except (LostError, TimeoutError):
            status = 0
        ledger.probes.setdefault(path, []).append((start, time.monotonic() - start, status))

    asked: set[asyncio.Task[None]] = set()
    while not _over.is_set():
        for path in PROBES:
            task = asyncio.create_task(once(path))
            asked.add(task)
            task.add_done_callback(asked.discard)
        await asyncio.sleep(PROBE_INTERVAL_SECONDS)
    await asyncio.gather(*asked)


def inputs_of(role: Role) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Names and makers of all inputs, reproducible from the seed."""
    kinds = sorted(KINDS)
    random.Random(role.seed).shuffle(kinds)
    for number in range(role.inputs):
        turn, rest = divmod(number, HOSTILE_EVERY)
        if rest:
            name, data = damaged(role.seed * 10**6 + number)
            yield name, lambda data=data: data  # type: ignore[misc]
        else:
            kind, size = kinds[turn % len(kinds)], SIZES[(turn + turn // len(kinds)) % len(SIZES)]
            yield f"{kind} ({size} MB)", lambda kind=kind, size=size: KINDS[kind](size * MEGABYTE)  # type: ignore[misc]


async def send_inputs(role: Role, ledger: Ledger) -> None:
    """Send hostile and damaged images, spread over the load's duration."""
    work, start = enumerate(inputs_of(role)), time.monotonic()

    async def one(number: int) -> None:
        chance = random.Random(role.seed + number)
        for turn, (name, make) in work:
            if time.monotonic() > start + MOST_DELAY * role.seconds + PATIENCE_SECONDS:
                return
            await asyncio.sleep(start + role.seconds * turn / role.inputs - time.monotonic())
            try:
                data = await asyncio.to_thread(make)
            except Exception as error:
                # Counts as an input that was not sent.
                print(f"input {name} cannot be made: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            await send_input(role, ledger, name, data, chance)
            ledger.inputs += 1

    await asyncio.gather(*map(one, range(SENDERS)))


async def send_input(role: Role, ledger: Ledger, name: str, data: bytes, chance: random.Random) -> None:
    """Send one image, which must be answered or refused."""
    body, headers = form([("file", data)]) if chance.random() < 0.2 else (data, BYTES)
    accept = {"Accept": "image/png"} if chance.random() < 0.1 else {}
    start = time.monotonic()
    try:
        async with asyncio.timeout(role.target.patience):
            while True:
                began = time.monotonic()
                reply = await ask(role.target.port, "POST", "/predict?map_size=model", body, headers | accept)
                ledger.judge("hostile images", name, reply, began, expected={413, 415, TOO_SLOW, OVERLOADED})
                if reply.status not in (TOO_SLOW, OVERLOADED):
                    return
                await asyncio.sleep(min(2.0, float(reply.headers.get("retry-after", 1))))
    except TimeoutError:
        ledger.trouble("hostile images", name, HUNG, f"no answer after {role.target.patience:g} s", start)
    except LostError as error:
        ledger.trouble("hostile images", name, LOST, str(error), began)


async def attack_for_ever(role: Role, ledger: Ledger) -> None:
    """Attackers: each runs one attack after another; a round has every kind."""

    async def one(number: int) -> None:
        chance = random.Random(role.seed + number)
        while not _over.is_set():
            for chosen in chance.sample(ATTACKS, len(ATTACKS)):
                if _over.is_set():
                    return
                await attack(chosen, role.target, ledger, chance)
                await asyncio.sleep(chance.uniform(0, 0.3))

    await asyncio.gather(*map(one, range(ATTACKERS)))


def roles(target: Target, seed: int, seconds: float, inputs: int, answers: dict[str, bytes]) -> Sequence[Role]:
    """All roles of a load."""
    names = ("probes", "good", "inputs", "attacks")
    return [Role(name, seed, target, seconds, inputs, answers) for name in names]
