"""One body of tests over every index, and what goes wrong with a server."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import anyio
import anyio.lowlevel
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from qdrant_client import models

from cache import memory
from cache.encoder import Vector
from cache.errors import IndexUnavailable
from cache.index import Index, Near, Point
from cache.memory import MemoryIndex
from cache.qdrant import BATCH, PAGE, QdrantIndex
from tests.cache.fake_qdrant import FakeQdrant

pytestmark = pytest.mark.anyio

KINDS = ["memory", "memory in threads", "qdrant"]
DIMENSIONS = 4
NOW = 1_800_000_000.0
KEY = "a-key-that-nobody-may-see"
NAMES = (f"imgen-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def server() -> Iterator[FakeQdrant]:
    with FakeQdrant(api_key=KEY) as fake:
        yield fake


@pytest.fixture(params=KINDS)
async def index(
    request: pytest.FixtureRequest, server: FakeQdrant, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Index]:
    if request.param == "memory in threads":
        # As with a large scope: searches off the event loop, over many blocks.
        for name, size in {"INLINE": 0, "ROWS": 8, "COPIED": 4}.items():
            monkeypatch.setattr(memory, name, size)
    built = qdrant(server) if request.param == "qdrant" else MemoryIndex(DIMENSIONS)
    async with built.open():
        yield built


def qdrant(server: FakeQdrant, *, api_key: str | None = KEY, timeout: float = 20.0, name: str = "") -> QdrantIndex:
    return QdrantIndex(
        server.url, collection=name or next(NAMES), dimensions=DIMENSIONS, api_key=api_key, timeout=timeout
    )


def unit(*numbers: float) -> Vector:
    vector = np.array(numbers, np.float32)
    return vector / np.linalg.norm(vector)


EAST, NORTH = unit(1, 0, 0, 0), unit(0, 1, 0, 0)


def between(similarity: float) -> Vector:
    """A vector of this similarity to EAST."""
    return unit(similarity, (1 - similarity**2) ** 0.5, 0, 0)


def point(
    id: str,
    vector: Vector = EAST,
    *,
    scope: str = "s",
    forms: Mapping[str, str] | None = None,
    expires_at: float | None = None,
) -> Point:
    return Point(id=id, scope=scope, forms=forms or {}, vector=vector, expires_at=expires_at)


async def near(index: Index, vector: Vector = EAST, **how: Any) -> list[Near]:
    return await index.search(vector, **({"scope": "s", "floor": -1.0, "limit": 10, "now": NOW} | how))


async def found(index: Index, vector: Vector = EAST, **how: Any) -> list[str]:
    return [each.id for each in await near(index, vector, **how)]


async def all_ids(index: Index) -> list[str]:
    return sorted([id async for id in index.ids()])


# -- every index ------------------------------------------------------------------------------------------------------


async def test_an_empty_index_finds_nothing(index: Index) -> None:
    assert await found(index) == []
    assert await index.count() == 0
    assert await all_ids(index) == []


async def test_what_is_near_is_found_with_its_similarity_and_forms(index: Index) -> None:
    forms = {"ordered": "3f" * 16, "words": "a-short-one"}
    await index.put([point("a", between(0.8), forms=forms)])
    (there,) = await near(index)
    assert (there.id, there.forms) == ("a", forms)
    assert there.similarity == pytest.approx(0.8, abs=1e-6)


async def test_the_nearest_come_first_and_no_more_than_asked_for(index: Index) -> None:
    similarities = {"d": 0.1, "a": 0.9, "c": 0.3, "b": 0.6, "e": -0.7}
    await index.put([point(id, between(similarity)) for id, similarity in similarities.items()])
    assert await found(index) == ["a", "b", "c", "d", "e"]
    assert await found(index, limit=2) == ["a", "b"]


async def test_the_floor_itself_is_not_enough(index: Index) -> None:
    await index.put([point("same"), point("off", between(0.5))])
    (same, off) = await near(index)
    assert await found(index, floor=off.similarity) == ["same"]
    assert await found(index, floor=np.nextafter(off.similarity, -1)) == ["same", "off"]
    assert same.similarity <= 1.0
    assert await found(index, floor=1.0) == []


async def test_a_similarity_is_never_over_one(index: Index) -> None:
    vectors = [unit(*row) for row in np.random.default_rng(0).standard_normal((50, DIMENSIONS))]
    assert any(vector @ vector > 1 for vector in vectors)
    await index.put([point(str(number), vector) for number, vector in enumerate(vectors)])
    for number, vector in enumerate(vectors):
        (nearest,) = await near(index, vector, limit=1)
        assert nearest.id == str(number)
        assert 0.999 < nearest.similarity <= 1.0
        assert await found(index, vector, floor=1.0) == []


async def test_a_scope_sees_its_own_points_alone(index: Index) -> None:
    await index.put([point("a", scope="one"), point("b", scope="two")])
    assert await found(index, scope="one") == ["a"]
    assert await found(index, scope="two") == ["b"]
    assert await found(index, scope="three") == []
    assert await index.count() == 2


async def test_with_a_form_only_those_that_agree_at_its_level_are_found(index: Index) -> None:
    await index.put(
        [
            point("a", forms={"ordered": "cat-on-mat", "words": "cat-mat"}),
            point("b", between(0.9), forms={"ordered": "mat-on-cat", "words": "cat-mat"}),
            point("c", between(0.8), forms={"ordered": "cat-on-mat-and-more-than-that", "words": "cat"}),
            point("d", between(0.7)),
        ]
    )
    assert await found(index, form=("ordered", "cat-on-mat")) == ["a"]
    assert await found(index, form=("words", "cat-mat")) == ["a", "b"]
    assert await found(index, form=("words", "cat-mat"), limit=1) == ["a"]
    assert await found(index, form=("words", "cat-mat"), floor=0.95) == ["a"]
    assert await found(index, form=("words", "cat")) == ["c"]
    assert await found(index, form=("words", "cat-mat-and-a-word-longer-than-any")) == []
    assert await found(index, form=("no-such-level", "cat-mat")) == []


async def test_forms_agree_to_the_last_letter_whatever_their_length(index: Index) -> None:
    words = ["x" * length + end for length in (7, 8, 15, 16, 31) for end in ("", "a", "b")]
    await index.put([point(f"p{number}", forms={"words": word}) for number, word in enumerate(words)])
    for number, word in enumerate(words):
        (only,) = await near(index, form=("words", word), limit=99)
        assert (only.id, only.forms) == (f"p{number}", {"words": word})


async def test_what_has_expired_is_not_found_but_still_counts(index: Index) -> None:
    await index.put([point("now", expires_at=NOW), point("soon", expires_at=NOW + 0.25), point("never")])
    assert sorted(await found(index)) == ["never", "soon"]
    assert await found(index, now=NOW + 0.25) == ["never"]
    assert sorted(await found(index, now=NOW - 1)) == ["never", "now", "soon"]
    assert await index.count() == 3


async def test_the_expired_take_no_place_of_others(index: Index) -> None:
    gone = [point(f"gone-{number}", expires_at=NOW - 1) for number in range(20)]
    await index.put([*gone, point("far", between(0.2))])
    assert await found(index, limit=2) == ["far"]


async def test_a_point_replaces_the_one_of_its_id(index: Index) -> None:
    await index.put([point("a", EAST, forms={"ordered": "one", "words": "w"}, expires_at=NOW + 1)])
    await index.put([point("a", NORTH, forms={"ordered": "two"})])
    assert await index.count() == 1
    assert await near(index, NORTH, now=NOW + 9) == [Near(id="a", similarity=1.0, forms={"ordered": "two"})]
    assert await found(index, form=("ordered", "one")) == []
    assert await found(index, form=("words", "w")) == []


async def test_a_point_may_move_to_another_scope(index: Index) -> None:
    await index.put([point("a", scope="one"), point("b", scope="one")])
    await index.put([point("a", scope="two")])
    assert await found(index, scope="one") == ["b"]
    assert await found(index, scope="two") == ["a"]
    assert await index.count() == 2


async def test_of_two_with_one_id_the_later_counts(index: Index) -> None:
    await index.put([point("a", EAST, scope="one"), point("a", NORTH)])
    assert await index.count() == 1
    assert await found(index, scope="one") == []
    assert await found(index, NORTH, floor=0.9) == ["a"]


async def test_what_is_removed_is_gone_and_the_rest_stays(index: Index) -> None:
    points = [point(f"p{number:02}", between(number / 40)) for number in range(40)]
    await index.put(points)
    await index.remove([each.id for each in points[::2]] + ["never-there"])
    left = [each.id for each in points[1::2]]
    assert await all_ids(index) == left
    assert await found(index, limit=99) == left[::-1]
    await index.remove(left)
    assert await index.count() == 0
    await index.remove(left)
    await index.put(points[:3])
    assert await all_ids(index) == ["p00", "p01", "p02"]


async def test_a_cleared_index_is_empty_and_takes_more(index: Index) -> None:
    await index.put([point("a"), point("b", scope="two")])
    await index.clear()
    assert await index.count() == 0
    assert await found(index) == []
    assert await all_ids(index) == []
    await index.put([point("c")])
    assert await found(index) == ["c"]


async def test_all_ids_are_told_over_many_pages(index: Index) -> None:
    points = [point(f"p{number:05}", scope=f"s{number % 7}") for number in range(2 * PAGE + BATCH + 1)]
    await index.put(points)
    assert await index.count() == len(points)
    assert await all_ids(index) == [each.id for each in points]
    await index.remove([each.id for each in points[1:]])
    assert await all_ids(index) == ["p00000"]


async def test_nothing_to_put_and_nothing_to_remove_is_nothing_done(index: Index) -> None:
    await index.put([])
    await index.remove([])
    assert await index.count() == 0


async def test_what_stays_is_found_whole_while_others_come_and_go(index: Index) -> None:
    """Each id has its own vector and form: a row that is read while it changes would tell."""
    chance = np.random.default_rng(0)
    vectors = {f"p{number}": unit(*chance.standard_normal(DIMENSIONS)) for number in range(120)}
    stays = [id for number, id in enumerate(vectors) if number % 3 == 0]
    comes = [id for id in vectors if id not in stays]
    whole = {id: point(id, vector, forms={"ordered": f"form-of-{id}"}) for id, vector in vectors.items()}
    await index.put([whole[id] for id in stays])
    done = False

    async def write() -> None:
        nonlocal done
        for start in range(0, len(comes), 10):
            some = comes[start : start + 10]
            await index.put([whole[id] for id in some])
            await index.put([whole[id] for id in stays[:5]])
            await index.remove(some[:7])
            await anyio.lowlevel.checkpoint()
        done = True

    async def read() -> None:
        while not done:
            await anyio.lowlevel.checkpoint()
            for id in stays[:10]:
                there = await near(index, vectors[id], limit=200)
                assert id in {each.id for each in there}
                assert len({each.id for each in there}) == len(there)
                for each in there:
                    assert each.forms == {"ordered": f"form-of-{each.id}"}
                    assert each.similarity == pytest.approx(float(vectors[each.id] @ vectors[id]), abs=1e-5)
                assert id in await found(index, vectors[id], form=("ordered", f"form-of-{id}"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        tasks.start_soon(read)
        tasks.start_soon(read)
    assert await index.count() == len(stays) + 3 * len(comes) // 10


directions = st.tuples(*[st.integers(-2, 2)] * DIMENSIONS).filter(any).map(lambda numbers: unit(*numbers))
points = st.builds(
    point,
    st.sampled_from("abcdefgh"),
    directions,
    scope=st.sampled_from("st"),
    forms=st.dictionaries(st.sampled_from(["ordered", "words"]), st.sampled_from(["x", "y" * 20]), max_size=2),
    expires_at=st.none() | st.sampled_from([NOW - 1, NOW, NOW + 1]),
)
steps = st.one_of(
    st.tuples(st.just("put"), st.lists(points, max_size=6)),
    st.tuples(st.just("remove"), st.lists(st.sampled_from("abcdefgh"), max_size=4)),
    st.tuples(st.just("clear"), st.none()),
)
#: None of these is a similarity that two such directions can have, but for the last.
questions = st.fixed_dictionaries(
    {
        "vector": directions,
        "scope": st.sampled_from("st"),
        "floor": st.sampled_from([-1.5, 0.123, 0.777, 1.0]),
        "limit": st.integers(1, 4),
        "form": st.none() | st.tuples(st.sampled_from(["ordered", "words"]), st.sampled_from(["x", "y" * 20])),
    }
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(done=st.lists(steps, min_size=1, max_size=6), asked=st.lists(questions, min_size=1, max_size=4))
async def test_it_finds_what_a_plain_list_of_points_would(
    index: Index, done: list[tuple[str, Any]], asked: list[dict[str, Any]]
) -> None:
    await index.clear()
    there: dict[str, Point] = {}
    for step, what in done:
        if step == "put":
            await index.put(what)
            there |= {each.id: each for each in what}
        elif step == "remove":
            await index.remove(what)
            there = {id: each for id, each in there.items() if id not in what}
        else:
            await index.clear()
            there = {}
    assert await all_ids(index) == sorted(there)
    assert await index.count() == len(there)
    for question in asked:
        expected = sorted((similarity for similarity in plainly(there, question).values()), reverse=True)
        got = await near(index, **question)
        assert [each.similarity for each in got] == pytest.approx(expected[: question["limit"]], abs=1e-5)
        assert len({each.id for each in got}) == len(got)
        for each in got:
            assert each.similarity == pytest.approx(plainly(there, question)[each.id], abs=1e-5)
            assert each.forms == there[each.id].forms


def plainly(there: Mapping[str, Point], question: Mapping[str, Any]) -> dict[str, float]:
    """The similarity of every point that a question may find."""
    level, form = question["form"] or ("", None)
    similarities = {
        each.id: min(1.0, sum(float(a) * float(b) for a, b in zip(each.vector, question["vector"], strict=True)))
        for each in there.values()
        if each.scope == question["scope"]
        and (each.expires_at is None or each.expires_at > NOW)
        and each.forms.get(level) == form
    }
    return {id: similarity for id, similarity in similarities.items() if similarity > question["floor"]}


# -- in memory --------------------------------------------------------------------------------------------------------


async def test_a_scope_of_many_blocks_finds_what_numpy_finds() -> None:
    chance = np.random.default_rng(0)
    vectors = chance.standard_normal((3 * memory.COPIED, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = MemoryIndex(8)
    await index.put([point(str(number), vector) for number, vector in enumerate(vectors)])
    await index.remove([str(number) for number in range(0, len(vectors), 3)])
    left = [number for number in range(len(vectors)) if number % 3]
    for vector in vectors[:20]:
        scores = vectors[left] @ vector
        expected = [str(left[row]) for row in np.argsort(-scores)[:10]]
        assert await found(index, vector) == expected


async def test_of_thousands_of_forms_each_finds_its_own() -> None:
    index = MemoryIndex(DIMENSIONS)
    await index.put([point(f"p{n}", forms={"ordered": f"form-{n}", "words": f"{n % 10}"}) for n in range(3000)])
    for n in range(3000):
        assert await found(index, form=("ordered", f"form-{n}")) == [f"p{n}"]
    assert len(await found(index, form=("words", "7"), limit=999)) == 300
    # More agree than are compared on the event loop.
    await index.put([point(f"q{n}", forms={"words": "all"}) for n in range(2 * memory.INLINE)])
    assert len(await found(index, form=("words", "all"), limit=9999)) == 2 * memory.INLINE


async def test_a_search_in_a_thread_never_mixes_what_a_row_was_with_what_it_is() -> None:
    wide = 256
    east, north = np.eye(2, wide, dtype=np.float32)
    index = MemoryIndex(wide)
    crowd = [f"c{number}" for number in range(2 * memory.INLINE)]
    await index.put([point(id, -east, forms={"way": "west"}) for id in crowd])
    done = False

    async def turn() -> None:
        for way, vector in itertools.cycle([("north", north), ("east", east)]):
            await index.put([point(f"{way}-{number}", vector, forms={"way": way}) for number in range(100)])
            await index.put([point("both", vector, forms={"way": way})])
            await index.remove([f"{way}-{number}" for number in range(100)])
            await anyio.lowlevel.checkpoint()
            if done:
                return

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(turn)
        for _ in range(150):
            there = await near(index, east, limit=300, floor=-0.5)
            assert len({each.id for each in there}) == len(there)
            for each in there:
                assert each.forms == {"way": "east" if each.similarity == 1.0 else "north"}
                assert each.id == "both" or each.id.startswith(each.forms["way"])
        done = True
    assert await index.count() == len(crowd) + 1


async def test_a_vector_of_another_length_is_refused_and_the_rest_stays() -> None:
    index = MemoryIndex(DIMENSIONS)
    await index.put([point("a")])
    for wrong in (np.ones(1, np.float32), np.ones(DIMENSIONS + 1, np.float32), np.ones((1, DIMENSIONS), np.float32)):
        with pytest.raises(ValueError, match="shape"):
            await index.put([point("a", wrong)])
    assert await near(index) == [Near(id="a", similarity=1.0, forms={})]


# -- a server that fails ----------------------------------------------------------------------------------------------

METHODS: dict[str, Any] = {
    "put": lambda index: index.put([point("a")]),
    "search": near,
    "remove": lambda index: index.remove(["a"]),
    "clear": lambda index: index.clear(),
    "count": lambda index: index.count(),
    "ids": all_ids,
}


@pytest.fixture
def own() -> Iterator[FakeQdrant]:
    """A server that a test may stop."""
    with FakeQdrant() as fake:
        yield fake


@pytest.fixture
def healed(server: FakeQdrant) -> Iterator[FakeQdrant]:
    yield server
    server.broken, server.stuck, server.hidden = None, False, False


@pytest.mark.parametrize("method", METHODS)
async def test_a_server_that_is_down_at_the_start_is_used_once_it_is_up(own: FakeQdrant, method: str) -> None:
    index = qdrant(own)
    own.stop()
    async with index.open():
        with pytest.raises(IndexUnavailable):
            await METHODS[method](index)
        own.start()
        await METHODS[method](index)
        await index.put([point("a")])
        assert await found(index) == ["a"]


async def test_a_server_that_comes_back_is_used_again(own: FakeQdrant) -> None:
    index = qdrant(own)
    async with index.open():
        await index.put([point("a")])
        own.stop()
        with pytest.raises(IndexUnavailable):
            await near(index)
        own.start()
        assert await found(index) == ["a"]


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param((500, '{"status":{"error":"Service internal error"},"time":0.0}'), id="500"),
        pytest.param((502, "<html>Bad Gateway</html>"), id="502"),
        pytest.param((307, ""), id="elsewhere"),
        pytest.param((429, '{"status":{"error":"Rate limiting exceeded"}}'), id="429"),
        pytest.param((404, "no such page"), id="not a Qdrant"),
        pytest.param((200, "<html>Welcome</html>"), id="not JSON"),
        pytest.param((200, '{"result":["what?"],"status":"ok"}'), id="another shape"),
        pytest.param((200, '{"status":"ok","time":0.0}'), id="no result"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("made", [False, True], ids=["first", "later"])
async def test_an_answer_of_no_use_is_said_to_be_none(
    healed: FakeQdrant, method: str, broken: tuple[int, str], made: bool
) -> None:
    index = qdrant(healed)
    async with index.open():
        if made:
            await index.count()
        healed.broken = broken
        with pytest.raises(IndexUnavailable):
            await METHODS[method](index)
        healed.broken = None
        await METHODS[method](index)


@pytest.mark.parametrize("method", METHODS)
async def test_no_answer_in_time_is_none(healed: FakeQdrant, method: str) -> None:
    index = qdrant(healed, timeout=0.2)
    async with index.open():
        healed.stuck = True
        with pytest.raises(IndexUnavailable, match=r"within 0\.2 s"):
            await METHODS[method](index)


@pytest.mark.parametrize("wrong", ["another-key", None])
@pytest.mark.parametrize("method", METHODS)
async def test_a_wrong_key_is_refused(server: FakeQdrant, method: str, wrong: str | None) -> None:
    index = qdrant(server, api_key=wrong)
    async with index.open():
        with pytest.raises(IndexUnavailable, match="status 401"):
            await METHODS[method](index)


async def test_an_error_never_tells_the_key(healed: FakeQdrant) -> None:
    index = qdrant(healed)
    async with index.open():
        for status in (200, 403, 500):
            healed.broken = (status, f"you sent {KEY}")
            with pytest.raises(IndexUnavailable) as refused:
                await near(index)
            assert KEY not in "".join(traceback.format_exception(refused.value))
    assert KEY not in repr(index)


async def test_a_collection_that_was_dropped_is_made_again(server: FakeQdrant) -> None:
    index = qdrant(server, name="dropped")
    async with index.open():
        for method in METHODS.values():
            await index.put([point("a")])
            server.drop("dropped")
            await method(index)
        await index.put([point("b")])
        assert await found(index, form=None) == ["b"]
        assert server.fields["dropped"].keys() == {"scope", "forms.ordered", "forms.words", "expires_at"}


async def test_a_collection_is_made_once_with_what_is_searched_by(server: FakeQdrant) -> None:
    index = qdrant(server, name="made")
    async with index.open(), anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(index.count)
    assert server.asked.count(("PUT", "/collections/made")) == 1
    assert server.asked.count(("PUT", "/collections/made/index")) == 4
    scope = server.fields["made"]["scope"]
    assert isinstance(scope, models.KeywordIndexParams) and scope.is_tenant
    config = server.local.get_collection("made").config.params.vectors
    assert isinstance(config, models.VectorParams)
    assert (config.size, config.distance) == (DIMENSIONS, models.Distance.COSINE)


async def test_a_collection_that_another_made_in_the_meantime_is_used(healed: FakeQdrant) -> None:
    first, second = qdrant(healed, name="raced"), qdrant(healed, name="raced")
    async with first.open(), second.open():
        await first.put([point("a")])
        healed.hidden = True
        assert await found(second) == ["a"]
    assert healed.asked.count(("PUT", "/collections/raced")) == 2


async def test_two_collections_of_one_server_never_mix(server: FakeQdrant) -> None:
    one, two = qdrant(server), qdrant(server)
    async with one.open(), two.open():
        await one.put([point("a")])
        assert await found(two) == []
        await two.clear()
        assert await found(one) == ["a"]


async def test_a_point_that_is_none_of_ours_is_said_to_be_one(server: FakeQdrant) -> None:
    index = qdrant(server, name="shared")
    async with index.open():
        await index.put([point("a")])
        foreign = models.PointStruct(id=1, vector=EAST.tolist(), payload={"scope": "s"})
        server.local.upsert("shared", [foreign])
        with pytest.raises(IndexUnavailable):
            await near(index)
        with pytest.raises(IndexUnavailable):
            await all_ids(index)


@pytest.mark.parametrize("method", METHODS)
async def test_an_index_that_is_not_open_does_not_answer(server: FakeQdrant, method: str) -> None:
    index = qdrant(server)
    with pytest.raises(IndexUnavailable, match="not open"):
        await METHODS[method](index)
    async with index.open():
        await METHODS[method](index)
    with pytest.raises(IndexUnavailable, match="not open"):
        await METHODS[method](index)
