"""
Two parsers, one meaning: random requests through our parsers and the API server's own. Every one that
we do not refuse must be the same to both.

A difference names its seed and the case as a line for tests/corpus/meaning.jsonl, where it stays.
"""

import base64
import itertools
import json
import multiprocessing
import os
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.cluster import controlplane
from tests.fuzz import cases as made_up
from tests.fuzz import compare, trees
from tests.fuzz.cases import Case

pytestmark = pytest.mark.e2e

CORPUS = Path(__file__).parents[1] / "corpus" / "meaning.jsonl"
SEEDS = Path(__file__).parents[1] / "corpus" / "seeds.txt"
NORMAL, LONG = 50_000, 1_000_000
PIECE = 5_000  # cases of one seed
KEPT = [made_up.kept(line) for line in CORPUS.read_text().splitlines()]


def encoded() -> list[tuple[str, bytes]]:
    """Objects as client-go sends them."""
    rng = random.Random(7)  # noqa: S311 - the same each time
    made = []
    for resource in ("pods", "secrets", "configmaps", "namespaces", "deployments", "cronjobs", "services"):
        version, kind = trees.KINDS[resource]
        for _ in range(8):
            pairs = [("apiVersion", version), ("kind", kind), ("metadata", trees.metadata(rng))]
            made.append((resource, trees.as_json(pairs + trees.content(rng, resource))))
    asked = [Case("POST", made_up.place(rng, resource, False), body=text.encode()) for resource, text in made]
    read = [(one, answer) for one, answer in zip(made, controlplane.meaning(c.question() for c in asked), strict=True)]
    good = [(resource, json.loads(text)) for (resource, text), answer in read if "error" not in answer]
    lines = controlplane.encode(text for _, text in good)
    found = [(resource, base64.b64decode(line)) for (resource, _), line in zip(good, lines, strict=True)]
    assert len(found) > 20
    return found


def cases(seed: int, objects: list[tuple[str, bytes]]) -> list[Case]:
    rng = random.Random(seed)  # noqa: S311 - the same each time
    return [made_up.case(rng, objects) for _ in range(PIECE)]


def compared(asked: Iterable[Case]) -> Iterator[tuple[Case, str]]:
    """Each case that both sides read, with the difference or ""."""
    read = [(case, found) for case in asked if (found := compare.ours(case)) is not None]
    second = {i: other for i, (case, _) in enumerate(read) if (other := compare.other_secret(case))}
    bound = {i: made for i, (case, found) in enumerate(read) if (made := compare.bound(case, found))}
    answers = controlplane.meaning(
        itertools.chain(
            (case.question() for case, _ in read),
            (read[i][0].question(other) for i, other in second.items()),
            (made.question() for made in bound.values()),
        )
    )
    first, rest = answers[: len(read)], answers[len(read) :]
    others = dict(zip(second, rest, strict=False))
    after = dict(zip(bound, rest[len(second) :], strict=True))
    for i, ((case, found), theirs) in enumerate(zip(read, first, strict=True)):
        why = compare.tells(case, found, theirs, others[i]) if i in others else ""
        if not why and i in after:
            why = compare.bound_difference(theirs, after[i])
        if not why and "error" not in theirs:
            why = compare.difference(case, found, theirs)
        if why or "error" not in theirs:
            yield case, why


def run(seeds: Iterable[int]) -> tuple[int, list[str]]:
    """How many both sides read, and the differences."""
    objects, both, differences = encoded(), 0, []
    for seed in seeds:
        for case, why in compared(cases(seed, objects)):
            both += 1
            if why:
                differences.append(f"seed {seed}: {why}\n  {case.line()}")
    return both, differences


@pytest.mark.attack("two parsers", "no difference")
@pytest.mark.parametrize("case", KEPT, ids=[case.name for case in KEPT])
def test_kept(case):
    assert not [why for _, why in compared([case]) if why]


@pytest.mark.attack("two parsers", "no difference")
def test_fifty_thousand():
    seeds = [int(seed) for seed in SEEDS.read_text().split()]
    more = range(1_000, 1_000 + NORMAL // PIECE - len(seeds))
    both, differences = run([*seeds, *more])
    assert not differences, f"{len(differences)} differences\n" + "\n".join(differences[:10])
    assert both > NORMAL * 0.3  # else it is the refusals that are compared


@pytest.mark.long
@pytest.mark.attack("two parsers", "no difference")
def test_a_million():
    seeds, processes = range(10_000, 10_000 + LONG // PIECE), os.cpu_count() or 1
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        parts = list(pool.map(run, [seeds[i::processes] for i in range(processes)]))
    both, differences = sum(count for count, _ in parts), [one for _, found in parts for one in found]
    assert not differences, f"{len(differences)} differences\n" + "\n".join(differences[:10])
    assert both > LONG * 0.3
