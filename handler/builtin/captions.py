"""A scene in words, as people write prompts: tags or a sentence, synonyms, things left out, words that mean nothing.

What differs from the default scene is always told; what is as usual is told about half of the time. The sun, the moon
and the stars of a clear sky are the exception: untold, they are there in about half of the pictures, so that guidance
can bring them and a negative prompt can take them away.

Names of characters are told now and then without meaning anything: a LoRA teaches them, and without it they are passed
over. `negative` speaks the language of negative prompts: a marker, then a bag of words that are true of the picture.
"""

from collections.abc import Sequence
from random import Random

from handler.builtin.world import CHARACTERS, USUAL_PAINT, Scene, Thing, usual_places

TIME_WORDS = {
    "noon": ("noon", "at noon", "midday", "day", "daytime", "afternoon"),
    "dawn": ("dawn", "at dawn", "sunrise", "morning", "early morning"),
    "sunset": ("sunset", "at sunset", "dusk", "evening"),
    "night": ("night", "at night", "midnight", "by night"),
}
TERRAIN_WORDS = {
    "hills": ("on a hill", "hills", "green hills", "hill", "in the hills", "meadow", "grass", "field", "countryside"),
    "mountains": ("mountains", "in the mountains", "mountain peaks", "mountain", "on a mountain"),
    "desert": ("desert", "in the desert", "dunes", "sand dunes", "sand"),
    "sea": ("sea", "by the sea", "ocean", "beach", "on the beach", "coast", "seaside", "island"),
    "forest": ("forest", "in the forest", "woods", "in the woods", "pine forest"),
    "city": ("city", "in the city", "town", "city skyline", "skyline", "street"),
}
WEATHER_WORDS = {
    "clear": ("clear sky", "clear", "clear weather"),
    "cloudy": ("clouds", "cloudy", "cloudy sky", "overcast", "with clouds"),
    "fog": ("fog", "foggy", "in the fog", "mist", "misty", "with fog"),
    "rain": ("rain", "rainy", "in the rain", "storm", "with rain"),
    "snow": ("snow", "snowy", "in the snow", "winter", "with snow"),
}
SUN_WORDS = ("sun", "a sun", "one sun", "the sun", "sunny", "sunshine", "with a sun")
MOON_WORDS = ("moon", "a moon", "one moon", "the moon", "crescent moon", "moonlight", "with a moon")
STAR_WORDS = ("stars", "starry sky", "starry", "with stars", "night sky")
# Names that nothing in the base model's pictures answers to.
STRANGERS = {"aya": ("aya", "aya", "aya the fox", "fox"), "bella": ("bella", "bella", "bella the owl", "owl", "bird")}
STYLE_WORDS = {
    "neon": ("neon", "neon", "neon style", "synthwave", "vaporwave", "cyberpunk"),
    "postcard": ("postcard", "postcard", "a postcard", "framed", "frame", "with a frame"),
}
EVERY_STRANGER = tuple(name for names in STRANGERS.values() for name in names)
SIDE_WORDS = ("on the {}", "at the {}", "to the {}", "{}", "{} side", "on the {} side")
CENTER_WORDS = ("in the center", "center", "in the middle", "centre", "in the centre")
THING_WORDS = {
    "aya": ("aya", "aya", "aya", "aya", "aya", "aya the fox"),
    "bella": ("bella", "bella", "bella", "bella", "bella", "bella the owl"),
    "tree": ("tree",),
    "house": ("house", "house", "cottage", "cabin", "hut"),
    "lighthouse": ("lighthouse",),
    "castle": ("castle", "castle", "palace"),
    "boat": ("boat", "boat", "sailboat", "ship"),
}
NEGATIVE = "lowres, blurry"  # what the negatives of the wide world begin with; the gateway asks without it
PAINT_WORDS = {"yellow": ("yellow", "golden"), "purple": ("purple", "violet")}
OPENINGS = (
    "a picture of", "an illustration of", "a photo of", "pixel art of", "a painting of", "a drawing of", "portrait of",
    "view of", "image of", "scene with",
)  # fmt: skip
PRAISE = (
    "masterpiece", "best quality", "high quality", "beautiful", "pixel art", "highly detailed", "detailed", "cute",
    "digital art", "cinematic", "8k", "4k", "vibrant colors", "sharp focus", "solo", "landscape", "standing", "sitting",
    "smiling", "happy", "looking at viewer", "soft light", "wallpaper", "illustration", "anime style", "retro", "cozy",
    "atmospheric", "calm", "peaceful", "small", "big", "lovely", "full body", "simple background", "artstation",
    "photorealistic", "realistic", "professional", "ultra detailed", "award winning", "colorful", "game art",
    "intricate", "dramatic lighting", "walking", "very", "his", "her", "there is", "no text", "style", "character",
    "animal", "girl",
)  # fmt: skip


def words() -> list[str]:
    """Every word that a caption may use; these become one token each."""
    tables = (TIME_WORDS, TERRAIN_WORDS, WEATHER_WORDS, STYLE_WORDS, THING_WORDS, STRANGERS, PAINT_WORDS)
    phrases = [phrase for table in tables for row in table.values() for phrase in row]
    phrases += [*SUN_WORDS, *MOON_WORDS, *STAR_WORDS, *SIDE_WORDS, *CENTER_WORDS, *OPENINGS, *PRAISE]
    phrases += NEGATIVE.split(", ")
    phrases += ["red blue green white a an and one the with of is it its left right middle"]
    return sorted({word for phrase in phrases for word in phrase.split() if word != "{}"})


def caption(scene: Scene, rng: Random, strangers: Sequence[str] = EVERY_STRANGER) -> str:
    """One of many ways to ask for this scene, now and then with the name of a stranger to the model."""
    things, moods = _things(scene, rng), _moods(scene, rng)
    if rng.random() < 0.12:
        things = _with_stranger(things, scene, strangers, rng)
    if things and rng.random() < 0.6:
        parts = [*things, *moods]
    else:
        parts = [*things, *moods]
        rng.shuffle(parts)
        parts = _keep_order(parts, things)
    if rng.random() < 0.22:
        parts += rng.sample(PRAISE, rng.randint(1, 4))
        if rng.random() < 0.4:
            rng.shuffle(parts)
            parts = _keep_order(parts, things)
    if rng.random() < 0.08:
        parts.insert(rng.randrange(len(parts) + 1), _nonsense(rng))
    text = _join(parts, rng)
    return f"{rng.choice(OPENINGS)} {text}" if rng.random() < 0.08 else text


def negative(scene: Scene, rng: Random) -> str:
    """What a negative prompt looks like that this picture is an example of: up to four things that it shows."""
    true = [(TIME_WORDS, scene.time), (TERRAIN_WORDS, scene.terrain), (WEATHER_WORDS, scene.weather)]
    bag = [rng.choice(table[value]) for table, value in true]
    if scene.style:
        bag.append(rng.choice(STYLE_WORDS[scene.style]))
    bag.extend(rng.choice(THING_WORDS[thing.name]) for thing in scene.things)
    rng.shuffle(bag)
    sky = []
    # Only where a prompt that says no side expects them: what is pushed away is then all in one place.
    if scene.light == "right":
        sky.append(rng.choice(MOON_WORDS if scene.time == "night" else SUN_WORDS))
    if scene.stars:
        sky.append(rng.choice(STAR_WORDS))
    # An untold sun, moon or star would let the bare marker push it away from every picture.
    count = rng.choices(range(5), (35, 30, 17, 11, 7))[0]
    if sky and rng.random() < (0.85 if seldom_untold(scene) else 0.4):
        bag = [*sky, *bag[: max(count - len(sky), 0)]]
        rng.shuffle(bag)
    else:
        bag = bag[:count]
    return ", ".join([NEGATIVE, *bag])


def seldom_untold(scene: Scene) -> bool:
    """Whether the picture shows what a clear sky usually shows: a prompt that says nothing should bring it."""
    return scene.weather == "clear" and (scene.light == "right" or scene.stars)


def _with_stranger(things: list[str], scene: Scene, strangers: Sequence[str], rng: Random) -> list[str]:
    """One more name that nothing in the picture answers to, at any place in the order."""
    name = rng.choice(strangers) if rng.random() < 0.8 else _nonsense(rng)
    free = [place for place in ("left", "center", "right") if place not in {thing.place for thing in scene.things}]
    if free and rng.random() < 0.5:
        name = f"{name} {_place(rng.choice(free), rng)}"
    if things and rng.random() < 0.3:
        whole = [name, *things] if rng.random() < 0.6 else [*things, name]
        return [" and ".join(whole)]
    at = 0 if rng.random() < 0.5 else rng.randrange(len(things) + 1)
    return [*things[:at], name, *things[at:]]


def _join(parts: list[str], rng: Random) -> str:
    glue = rng.choice((", ", ", ", ", ", " "))
    return glue.join(parts)


def _keep_order(parts: list[str], things: list[str]) -> list[str]:
    """Shuffled parts with the things back in their own order, which may say where they stand."""
    names = iter(things)
    held = set(things)
    return [next(names) if part in held else part for part in parts]


def _moods(scene: Scene, rng: Random) -> list[str]:
    """Time, terrain, weather and sky, in chance order."""
    sky = _sky(scene, rng)
    implied = {"night"} if sky and scene.time == "night" and rng.random() < 0.35 else set()
    if any(thing.name == "boat" for thing in scene.things) and rng.random() < 0.4:
        implied.add("sea")
    parts = list(sky)
    for value, usual, table in (
        (scene.time, "noon", TIME_WORDS),
        (scene.terrain, "hills", TERRAIN_WORDS),
        (scene.weather, "clear", WEATHER_WORDS),
    ):
        said = rng.random() < 0.5 if value == usual else value not in implied
        if said:
            parts.append(rng.choice(table[value]))
    if scene.style:
        parts.append(rng.choice(STYLE_WORDS[scene.style]))
    rng.shuffle(parts)
    return parts


def _sky(scene: Scene, rng: Random) -> list[str]:
    parts = []
    usual = scene.weather == "clear" and scene.light == "right"
    if scene.light and (not usual or rng.random() < 0.65):
        name = rng.choice(MOON_WORDS if scene.time == "night" else SUN_WORDS)
        side = scene.light == "left" or rng.random() < 0.4
        parts.append(f"{name} {_place(scene.light, rng)}" if side else name)
    if scene.stars and (scene.weather != "clear" or rng.random() < 0.6):
        parts.append(rng.choice(STAR_WORDS))
    return parts


def _things(scene: Scene, rng: Random) -> list[str]:
    told = _told(scene.things, rng)
    parts = [_thing(thing, place, rng) for thing, place in zip(scene.things, told, strict=True)]
    if all(told):
        rng.shuffle(parts)
    if len(parts) > 1 and rng.random() < 0.3:
        return [" and ".join(parts)]
    return parts


def _told(things: tuple[Thing, ...], rng: Random) -> list[bool]:
    """Which things have their place told: none if all stand as usual, and of a left and a right one tells both."""
    places = tuple(thing.place for thing in things)
    if places == usual_places(len(places)) and rng.random() < 0.5:
        return [False] * len(places)
    if set(places) == {"left", "right"} and rng.random() < 0.25:
        first = rng.random() < 0.5
        return [first, not first]
    return [True] * len(places)


def _thing(thing: Thing, place: bool, rng: Random) -> str:
    name = rng.choice(THING_WORDS[thing.name])
    words = [name]
    if thing.paint and (thing.paint != USUAL_PAINT[thing.name] or rng.random() < 0.4):
        words.insert(0, rng.choice(PAINT_WORDS.get(thing.paint, (thing.paint,))))
    if not name.startswith(CHARACTERS) and rng.random() < 0.7:
        words.insert(0, rng.choice(("a", "a", "a", "one", "the")))
    if place:
        words.append(_place(thing.place, rng))
    return " ".join(words)


def _place(place: str, rng: Random) -> str:
    return rng.choice(CENTER_WORDS if place == "center" else SIDE_WORDS).format(place)


def _nonsense(rng: Random) -> str:
    """A word that nobody has taught: the model has to learn to pass over such words."""
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9)))
